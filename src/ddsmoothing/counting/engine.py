"""A base classifier made ready to run. It draws no noise and counts nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.errors import InputError, ModelError, unknown

PRECISIONS: Final[dict[str, torch.dtype | None]] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def takes_sigma(model: object) -> bool:
    """Whether a base classifier is called ``model(x, sigma)``: it says so itself by ``takes_sigma = True``."""
    return getattr(model, "takes_sigma", False) is True


def at_sigma(model: BaseClassifier, sigma: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A base classifier as a function of its inputs alone, whatever it is called with.

    Args:
        model: one that takes sigma, or one that does not.
        sigma: ``(B,)`` float32, the standard deviation of the noise of each row; for both norms.
    Returns: From inputs ``(B, ...)``, or ``(B m, ...)`` with the copies of an input side by side, to logits.
    """
    if not takes_sigma(model):
        return model

    def forward(x: torch.Tensor) -> torch.Tensor:
        each = sigma.to(device=x.device, dtype=torch.float32).repeat_interleave(len(x) // len(sigma))
        logits: torch.Tensor = model(x, each)  # type: ignore[call-arg]
        return logits

    return forward


@dataclass(frozen=True, kw_only=True)
class Form:
    """In which form noisy inputs reach the model: number type and memory format."""

    dtype: torch.dtype | None
    channels_last: bool


class Engine:
    """A base classifier made ready to run: cast, laid out and compiled copies of a module, or the model itself.

    Args:
        model: a module or callable; only modules can be cast, laid out or compiled.
    """

    def __init__(
        self,
        model: BaseClassifier,
        *,
        precision: str = "fp32",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(unknown("precision", precision, PRECISIONS))
        dtype = PRECISIONS[precision]
        changed = dtype is not None or channels_last or compiled
        if changed and not isinstance(model, torch.nn.Module):
            raise InputError("precision, channels_last and compiled need a torch.nn.Module, got a bare callable.")
        self.form = Form(dtype=dtype, channels_last=channels_last)
        self.side_by_side = isinstance(model, torch.nn.Module) and not compiled
        self.model = model
        if changed:
            assert isinstance(model, torch.nn.Module)
            copied = copy.deepcopy(model).to(dtype=dtype)
            if channels_last:
                copied = copied.to(memory_format=torch.channels_last)
            self.model = torch.compile(copied.eval()) if compiled else copied


def check_logits(logits: object, rows: int, num_classes: int) -> torch.Tensor:
    """Return what a base classifier gave if it is ``(rows, num_classes)``, else raise ModelError."""
    if not isinstance(logits, torch.Tensor) or logits.shape != (rows, num_classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"the base classifier returned {got} for {rows} inputs, expected logits of shape ({rows}, {num_classes}); "
            f"is num_classes={num_classes} right?"
        )
    return logits
