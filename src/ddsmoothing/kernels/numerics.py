"""How numbers are multiplied on a device: set for a while, given back as it came, and told. It computes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def settled_numerics(device: torch.device, *, tf32: bool = False) -> Iterator[dict[str, bool]]:
    """Fix what else depends on the process, the machine's timing or a default: TF32, cuDNN's choice of algorithms.

    On CUDA alone; elsewhere nothing is changed. cuDNN does not measure algorithms and takes deterministic ones, so that
    a forward pass is a function. Whether all of torch is asked for deterministic algorithms is the caller's, and told.

    Args:
        device: that numbers are computed on.
        tf32: let float32 products have 10 bits of fraction, which makes them several times as fast.
    Yields: What is in force, for the record.
    """
    if device.type != "cuda":
        yield told(device)
        return
    before = _state()
    try:
        _set_tf32(tf32)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        yield told(device)
    finally:
        _put_back(before)


def told(device: torch.device) -> dict[str, bool]:
    """What is in force on a device and may change its logits; nothing on one that has no such settings."""
    if device.type != "cuda":
        return {}
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "tf32": _precisions() != ["ieee"] * 3 if _new() else bool(matmul.allow_tf32 or cudnn.allow_tf32),
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "reduced_precision_sums": bool(
            matmul.allow_fp16_reduced_precision_reduction or matmul.allow_bf16_reduced_precision_reduction
        ),
    }


def _new() -> bool:
    """Whether torch has a precision for each library, beside the older switches that it keeps in step with."""
    return hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _places() -> list[Any]:
    """Where torch keeps the precision of float32 products and convolutions."""
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


def _precisions() -> list[str]:
    return [place.fp32_precision for place in _places()]


def _set_tf32(on: bool) -> None:
    """By the older switches first: set alone, the newer ones leave them unreadable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are newer ones
        torch.set_float32_matmul_precision("high" if on else "highest")
        torch.backends.cudnn.allow_tf32 = on
    if _new():
        for place in _places():
            place.fp32_precision = "tf32" if on else "ieee"


def _state() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    state: dict[str, Any] = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, read in (
            ("matmul", torch.get_float32_matmul_precision),
            ("conv", lambda: torch.backends.cudnn.allow_tf32),
        ):
            try:
                state[name] = read()
            except RuntimeError:  # the caller has set the newer ones, which cannot be read by the older
                state[name] = None
    return state | {"precisions": _precisions() if _new() else []}


def _put_back(state: dict[str, Any]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic = state["benchmark"], state["deterministic"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if state["matmul"] is not None:
            torch.set_float32_matmul_precision(state["matmul"])
        if state["conv"] is not None:
            cudnn.allow_tf32 = state["conv"]
    for place, precision in zip(_places() if state["precisions"] else [], state["precisions"], strict=True):
        place.fp32_precision = precision
