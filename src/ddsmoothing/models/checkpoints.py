"""Weights in files: safetensors, and the checkpoints of the field, read as data and matched by name.

It builds no models. A checkpoint in pickle form is read by torch.load with weights_only=True, which runs nothing; what
it holds beside tensors, such as the options of a training run, is not looked at.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Iterable
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

# DataParallel, wrapping classes, torch.compile
WRAPPERS: Final = ("module.", "model.", "net.", "network.", "_orig_mod.")
# where checkpoints keep their weights: Cohen, Salman, DDS, Lightning; MACER; others
PLACES: Final = ("state_dict", "net", "model", "model_state_dict", "weights", "params")
AVERAGED: Final = re.compile(r"(?:^|[^a-z])(ema|swa|avg|averaged?|shadow)(?:[^a-z]|$)", re.IGNORECASE)
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


def read_checkpoint(path: Path, weights_key: str | None = None) -> Checkpoint:
    """The weights of a file: ``.safetensors``, or what torch.save wrote.

    Args:
        path: The file.
        weights_key: Which of several sets of weights, such as ``state_dict_ema``: an entry of the file, or what the
            names of its tensors begin with. A file with averaged weights beside others has to be told.
    Raises:
        ModelError: It is no such file, holds no weights, or several sets of which none was chosen.
    """
    if not path.is_file():
        raise ModelError(f"no model file at {path}.")
    return (_safetensors if path.suffix == ".safetensors" else _pickled)(path, weights_key)


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


def _safetensors(path: Path, weights_key: str | None) -> Checkpoint:
    try:
        metadata, state = safetensors_metadata(path), load(path.read_bytes())
    except UNREADABLE as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}.") from error
    if "ddsmoothing" not in metadata:
        return Checkpoint(name=str(path), state=_chosen(state, weights_key, path))
    if weights_key is not None:
        raise ModelError(f"{path} holds one set of weights; leave --weights-key out.")
    try:
        spec = ModelSpec.model_validate_json(metadata["ddsmoothing"])
    except ValidationError as error:
        raise ModelError(f"{path}: metadata are not a model spec: {first_error(error)}.") from error
    return Checkpoint(name=str(path), state=state, spec=spec)


# pickles


class LeftOut:
    """Stands for an object that a checkpoint holds beside its weights: it keeps nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> LeftOut:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _empty(*_: Any) -> dict[Any, Any]:
    """Stands for a dictionary of another class; its entries are set afterwards."""
    return {}


_NUMPY: Final = tuple(
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
)
_LIGHTNING: Final = tuple(
    f"{place}.AttributeDict"
    for place in (
        *("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
        *("lightning_fabric.utilities.data", "lightning.fabric.utilities.data"),
    )
)
HARMLESS: Final[
    dict[str, Any]
] = {  # what options of training runs are made of; neither imported nor called: a stand-in is
    **dict.fromkeys((*_NUMPY, "numpy.dtype", "numpy.ndarray"), LeftOut),
    **dict.fromkeys(("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime"), LeftOut),
    **dict.fromkeys(("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"), LeftOut),
    **dict.fromkeys(("pathlib._local.PosixPath", "pathlib._local.WindowsPath"), LeftOut),
    **dict.fromkeys(("builtins.list", "builtins.dict", "builtins.int", "builtins.float", "builtins.str"), LeftOut),
    "torch.torch_version.TorchVersion": LeftOut,
    "collections.defaultdict": _empty,
    **dict.fromkeys(_LIGHTNING, dict),
}
_LOADING = threading.Lock()  # torch keeps one list of names for all threads


def _pickled(path: Path, weights_key: str | None) -> Checkpoint:
    try:
        with (
            _LOADING,
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(v, k) for k, v in HARMLESS.items()]),
        ):
            warnings.simplefilter("ignore")  # of other pickle protocols: it is read, or it is not
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = type(error).__name__ if named is None else f"it names {named[1]}"
        raise ModelError(
            f"{path} is not a checkpoint of plain tensors ({reason}). What can run code is not loaded; save the state "
            "dict by torch.save or as safetensors, or give package.module:function."
        ) from error
    state = _chosen(found, weights_key, path)
    arch = found.get("arch") if isinstance(found, dict) else None
    return Checkpoint(name=str(path), state=state, arch=arch if isinstance(arch, str) else None)


# which of several sets of weights


def _chosen(found: Any, weights_key: str | None, path: Path) -> State:
    """The weights that were asked for, or the only ones; ModelError where somebody has to say which."""
    sets = _sets(found)
    if weights_key is not None:
        return _asked(sets, weights_key, path)
    known = [place for place in PLACES if place in sets]
    names = sorted(sets) if any(map(AVERAGED.search, sets)) or not known else known
    if not names:
        raise ModelError(f"{path} holds no state dict (tensors by name), nor one under {', '.join(PLACES)}.")
    if len(names) == 1:
        return sets[names[0]]
    averaged = [name for name in names if AVERAGED.search(name)]
    raise ModelError(
        f"{path} holds several sets of weights: {', '.join(map(repr, names))}"
        + (f", of which {', '.join(map(repr, averaged))} look averaged" if averaged else "")
        + "; say which with --weights-key (weights_key=)."
    )


def _asked(sets: dict[str, State], key: str, path: Path) -> State:
    """A set by its name, or the tensors whose names begin so."""
    if key in sets:
        return sets[key]
    for state in sets.values():
        if part := {name.removeprefix(f"{key}."): value for name, value in state.items() if name.startswith(f"{key}.")}:
            return part
    names = sorted({*sets, *(part for state in sets.values() for part in _parts(state))} - {""})
    raise ModelError(f"{path} holds no weights {key!r}, expected one of {_few(names)} for --weights-key.")


def _sets(found: Any, above: str = "", depth: int = 2) -> dict[str, State]:
    """All state dicts in a file by their place; the whole is ''."""
    if not isinstance(found, dict):
        return {}
    if found and all(map(_is_weight, found, found.values())):
        return {above: dict(found)}
    inner = {f"{above}.{key}".lstrip("."): value for key, value in found.items() if isinstance(key, str) and depth}
    return {place: state for key, value in inner.items() for place, state in _sets(value, key, depth - 1).items()}


def _parts(state: Iterable[str]) -> set[str]:
    """What names begin with, before their first dot."""
    return {name.partition(".")[0] for name in state}


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
    """Without the prefixes that all names share, and without the counter of torch's averaged models."""
    if len(state) > 1 and "n_averaged" in state:
        state = {key: value for key, value in state.items() if key != "n_averaged"}
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
        fits = [part for part in sorted(_parts(state)) if {f"{part}.{key}" for key in expected} <= state.keys()]
        hint = f" Names that begin with {' or '.join(fits)} would fit; say so with --weights-key." if fits else ""
        raise ModelError(
            f"{name} does not fit: missing {_few(missing)}, unexpected {_few(extra)}, other shape {_few(wrong)}.{hint}"
        )
    model.load_state_dict(state)


def _few(names: list[str]) -> str:
    return str(names) if len(names) <= 3 else f"{names[:3]} and {len(names) - 3} more"
