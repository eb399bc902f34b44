"""Weights in files: safetensors, and the checkpoints of the field, read as data and matched by name.

It builds no models. A checkpoint in pickle form is read by torch.load with weights_only=True, which runs nothing.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ddsmoothing.errors import ModelError, first_error
from ddsmoothing.files import write_durably
from ddsmoothing.models.spec import ModelSpec

WRAPPERS: Final = ("module.", "model.", "_orig_mod.")  # DataParallel, wrapping classes, torch.compile
PLACES: Final = (
    "state_dict",
    "net",
    "model",
)  # where checkpoints keep their weights: Cohen, Salman, DDS; MACER; others
LARGEST_HEADER: Final = 10**8  # bytes of a safetensors file's header, at most, as the format has it
UNREADABLE: Final = (SafetensorError, OSError, ValueError, AttributeError, RecursionError, OverflowError)
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        name: of the file.   state: tensors by name.   spec: of a file of ours.   arch: as the file calls it.
    """

    name: str
    state: State
    spec: ModelSpec | None = None
    arch: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights of a file: ``.safetensors``, or what torch.save wrote.

    Raises: ModelError.
    """
    if not path.is_file():
        raise ModelError(f"no model file at {path}.")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def save_model(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write weights and spec as safetensors, readable by ``load_model``; ModelError where that is not possible."""
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    try:
        write_durably(path, save(state, metadata={"ddsmoothing": spec.text()}))
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}.") from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors, read without them; one of UNREADABLE where it is none.

    The library opens no file whose name is not UTF-8, so it is given the bytes.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        found = json.loads(file.read(min(size, LARGEST_HEADER))).get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its metadata are no texts by name")
    return found


def _safetensors(path: Path) -> Checkpoint:
    try:
        metadata, state = safetensors_metadata(path), load(path.read_bytes())
    except UNREADABLE as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}.") from error
    if "ddsmoothing" not in metadata:
        return Checkpoint(name=str(path), state=state)
    try:
        spec = ModelSpec.model_validate_json(metadata["ddsmoothing"])
    except ValidationError as error:
        raise ModelError(f"{path}: metadata are not a model spec: {first_error(error)}.") from error
    return Checkpoint(name=str(path), state=state, spec=spec)


def _pickled(path: Path) -> Checkpoint:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: it is read, or it is not
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = type(error).__name__ if named is None else f"it names {named[1]}"
        raise ModelError(
            f"{path} is not a checkpoint of plain tensors ({reason}). What can run code is not loaded; save the state "
            "dict by torch.save or as safetensors, or give package.module:function."
        ) from error
    state: Any = found
    for place in PLACES:
        if isinstance(state, dict) and isinstance(state.get(place), dict):
            state = state[place]
            break
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state, state.values())):
        raise ModelError(f"{path} holds no state dict (tensors by name), nor one under {', '.join(PLACES)}.")
    arch = found.get("arch") if isinstance(found, dict) else None
    return Checkpoint(name=str(path), state=dict(state), arch=arch if isinstance(arch, str) else None)


def _is_weight(key: Any, value: Any) -> bool:
    """Dense real numbers under a name."""
    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
    return isinstance(key, str) and dense and value.device.type == "cpu" and not value.is_complex()


def split(state: State) -> tuple[State, State]:
    """The tensors of the normalising layer, if any, and those of the network, without the names of what wraps them.

    A network behind its normalisation, ``Sequential(layer, network)``, has names ``1.``; those of the layer are ``0.``.
    """
    state = _unwrapped(state)
    if all(re.match(r"[01]\.", key) for key in state) and any(key.startswith("1.") for key in state):
        layer = {key[2:]: value for key, value in state.items() if key.startswith("0.")}
        return layer, _unwrapped({key[2:]: value for key, value in state.items() if key.startswith("1.")})
    return {}, state


def _unwrapped(state: State) -> State:
    """Without the prefixes that all names share."""
    for prefix in WRAPPERS:
        if state and all(key.startswith(prefix) for key in state):
            return _unwrapped({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def load_state(model: nn.Module, state: State, name: str) -> None:
    """Load by name; say what is missing, unexpected or of another shape."""
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if missing or extra or wrong:
        raise ModelError(
            f"{name} does not fit: missing {_few(missing)}, unexpected {_few(extra)}, other shape {_few(wrong)}."
        )
    model.load_state_dict(state)


def _few(names: list[str]) -> str:
    return str(names) if len(names) <= 3 else f"{names[:3]} and {len(names) - 3} more"
