"""The logits of a model that returns more than logits: an object, a dictionary or a tuple that holds them.

It knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ddsmoothing.counting.engine import takes_sigma
from ddsmoothing.errors import ModelError


def logits_of(output: Any, key: str) -> torch.Tensor:
    """The part of a model's output that its key names: an entry, an attribute, or a place such as ``0`` in a tuple.

    Raises: ModelError naming what is there.
    """
    found: Any = None
    if isinstance(output, Mapping):
        found = output.get(key)
    elif isinstance(output, (tuple, list)) and key.isdecimal():
        found = output[int(key)] if int(key) < len(output) else None
    if found is None and not isinstance(output, torch.Tensor):
        found = getattr(output, key, None)
    if not isinstance(found, torch.Tensor):
        raise ModelError(f"the model's output has no tensor {key!r}: it is {described(output)}.")
    return found


def described(output: Any) -> str:
    """What a model returned, in words: its type, and the tensors in it by key."""
    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        entries = {str(key): value for key, value in output.items()}
    elif isinstance(output, (tuple, list)):
        entries = {str(place): value for place, value in enumerate(output)}
    else:
        entries = vars(output) if hasattr(output, "__dict__") else {}
    names = [f"{key} {tuple(value.shape)}" for key, value in entries.items() if isinstance(value, torch.Tensor)]
    return f"{type(output).__name__} with {', '.join(names)}" if names else type(output).__name__


class Picked(nn.Module):
    """A module of which one part of the output is taken: ``Picked(model, "logits")``.

    Args:
        model: Returns an object, a dictionary or a tuple.
        key: Where the logits ``(B, K)`` are in it.
    """

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key, self.takes_sigma = model, key, takes_sigma(model)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model(*inputs), self.key)

    def extra_repr(self) -> str:
        return f"key={self.key!r}"


def picked(model: Any, key: str) -> Any:
    """A model, module or callable, of which one part of the output is taken."""
    if isinstance(model, nn.Module):
        return Picked(model, key).train(model.training)

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        return logits_of(model(*inputs), key)

    forward.takes_sigma = takes_sigma(model)  # type: ignore[attr-defined]
    return forward
