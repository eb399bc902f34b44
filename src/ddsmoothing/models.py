"""Base classifiers by name: shipped models, safetensors files, and anyone's ``package.module:function``.

It knows no smoothing. Weights are data: only safetensors are read, tensors are matched by name.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ddsmoothing.errors import InputError, ModelError, unknown


class Normalize(nn.Module):
    """``(x - mean) / std`` for each channel, as part of the model, so that noise and radii stay in pixel units."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class SmallCNN(nn.Sequential):
    """Three convolutions and a linear layer for 28x28 grey images: 30,154 parameters with ten classes."""

    def __init__(self, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(
            Normalize(mean, std),
            *_convolution(1, 16, kernel=5, stride=2),
            *_convolution(16, 32, kernel=3, stride=2),
            *_convolution(32, 32, kernel=3, stride=1),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, num_classes),
        )


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


ARCHITECTURES: Final[dict[str, Callable[..., nn.Module]]] = {"small-cnn": SmallCNN}
SHIPPED: Final[dict[str, str]] = {"fashion-mnist-cnn": "fashion-mnist-cnn.safetensors"}


class ModelSpec(BaseModel):
    """What the metadata of a safetensors file says of its model.

    Attributes:
        arch: a key of ARCHITECTURES.   classes: their names.   mean, std: of the normalisation inside the model.
        training_sigmas: the noise it was trained with: one sigma, or the ends of a range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    classes: tuple[str, ...] = Field(min_length=2)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training_sigmas: tuple[float, ...] = Field(min_length=1)

    def build(self) -> nn.Module:
        """The architecture with random weights."""
        if self.arch not in ARCHITECTURES:
            raise ModelError(unknown("architecture", self.arch, ARCHITECTURES))
        return ARCHITECTURES[self.arch](num_classes=len(self.classes), mean=self.mean, std=self.std)

    @property
    def sigma0(self) -> float:
        """Where to start a search: the geometric mean of the training sigmas, three digits."""
        logs = [math.log(sigma) for sigma in self.training_sigmas]
        return float(f"{math.exp(sum(logs) / len(logs)):.3g}")


def load_model(name: str) -> nn.Module:
    """A base classifier in eval mode.

    Args:
        name: a shipped name, a ``.safetensors`` file whose metadata name the architecture, or
            ``package.module:function``, a function without arguments (or a module object) that gives the model.
            The last imports and runs that code.
    Returns: a module from ``(B, ...)`` to logits ``(B, K)``; ``spec_of`` tells what its file says of it.
    Raises: ModelError.
    """
    if name in SHIPPED:
        with as_file(files("ddsmoothing") / "assets" / SHIPPED[name]) as path:
            return _load_safetensors(path)
    if ":" in name and not Path(name).exists():
        return _load_function(name)
    if Path(name).suffix == ".safetensors":
        return _load_safetensors(Path(name))
    if Path(name).exists():
        raise ModelError(
            f"{name} is not a .safetensors file. Checkpoints in pickle form can run code and are not loaded; convert "
            "the state dict with safetensors.torch.save_file, or give package.module:function."
        )
    raise InputError(unknown("model", name, SHIPPED) + " Or a .safetensors file, or package.module:function.")


def save_model(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write weights and spec as safetensors, readable by ``load_model``."""
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, metadata={"ddsmoothing": spec.model_dump_json()})


def spec_of(model: Any) -> ModelSpec | None:
    """What the file of a loaded model said of it; None where it said nothing."""
    spec = getattr(model, "spec", None)
    return spec if isinstance(spec, ModelSpec) else None


def model_hash(model: Any) -> str | None:
    """SHA-256 over a module's sorted names, types, shapes and bytes and its spec; None for a bare callable."""
    if not isinstance(model, nn.Module):
        return None
    digest = hashlib.sha256()
    spec = spec_of(model)
    digest.update((repr(model) if spec is None else spec.model_dump_json()).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def probe_classes(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> int:
    """The number of classes K that a model's logits ``(B, K)`` have on inputs x."""
    with torch.inference_mode():
        try:
            logits = model(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"the model does not take inputs of shape {tuple(x.shape)}: {reason}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"the model returned {got} for {len(x)} inputs, expected logits ({len(x)}, K).")
    return int(logits.shape[1])


def model_identity(model: Any, model_id: str | None = None) -> str:
    """What ties a file to a model: its hash, or for a bare callable the id that its user gives it.

    Raises: InputError where there is neither.
    """
    digest = model_hash(model)
    if digest is None and not model_id:
        raise InputError("this model is a bare callable and has no hash; name it with --model-id (model_id=).")
    return f"sha256:{digest}" if digest is not None else f"id:{model_id}"


def _load_safetensors(path: Path) -> nn.Module:
    if not path.is_file():
        raise ModelError(f"no model file at {path}. Shipped models: {', '.join(SHIPPED)}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}.") from error
    if "ddsmoothing" not in metadata:
        raise ModelError(f"{path} has no ddsmoothing metadata, so its architecture is unknown; write it by save_model.")
    try:
        spec = ModelSpec.model_validate_json(metadata["ddsmoothing"])
    except ValidationError as error:
        raise ModelError(f"{path}: metadata are not a model spec: {first_error(error)}.") from error
    model = spec.build()
    _load_state(model, state, str(path))
    model.spec = spec  # type: ignore[assignment]
    return model.eval()


def _load_state(model: nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Load by name; say what is missing, unexpected or of another shape."""
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if missing or extra or wrong:
        raise ModelError(
            f"{name} does not fit: missing {missing[:3]}, unexpected {extra[:3]}, other shape {wrong[:3]}."
        )
    model.load_state_dict(state)


def _load_function(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"cannot import {name!r}: {error}. Expected package.module:function on the path.") from error
    try:
        model = target if isinstance(target, nn.Module) else target()
    except TypeError as error:
        raise ModelError(
            f"{name} gave no model: {error}. Expected package.module:function without arguments."
        ) from error
    if isinstance(model, nn.Module):
        return model.eval()
    if not callable(model):
        raise ModelError(f"{name} gave {type(model).__name__}, expected a torch.nn.Module or a callable.")
    return model  # type: ignore[no-any-return]


def first_error(error: ValidationError) -> str:
    """The first thing a validation found, in one line."""
    entry = error.errors()[0]
    place = ".".join(str(part) for part in entry["loc"])
    return f"{place}: {entry['msg']}" if place else str(entry["msg"])
