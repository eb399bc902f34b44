"""A run small enough to be made hundreds of times: eight inputs of 2,304 numbers, so that a request has many blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.sigma import SigmaPolicy
from reference import Half

SIDE, INPUTS, N = 48, 8, 400  # 56 samples in a noise block
POLICIES: dict[str, Callable[[], SigmaPolicy]] = {
    "fixed": lambda: SigmaPolicy.fixed(0.3),
    "search": lambda: SigmaPolicy.search(0.3),
    "file": lambda: SigmaPolicy.given(np.linspace(0.2, 0.5, INPUTS)),
}


def small_data() -> dds.Dataset:
    """Inputs on both sides of the boundary of the model, one of them close to it."""
    x = np.full((INPUTS, 1, SIDE, SIDE), 120, dtype=np.uint8)
    x[:, 0, 0, 0] = [10, 60, 90, 100, 104, 130, 180, 240]
    return dds.Dataset(name="small", split="test", x=x, y=np.array([0, 0, 0, 0, 1, 1, 1, 1]))


def small_smoothed() -> dds.SmoothedClassifier:
    """Class 1 where the first pixel exceeds 100.5/255; a third class never wins."""
    half = Half([1.0] + [0.0] * (SIDE * SIDE - 1), 100.5 / 255, num_classes=3)
    return dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=3, block_size=64)


def certified(smoothed: dds.SmoothedClassifier, data: dds.Dataset, sigma: Any, out: Path, **options: Any) -> dds.Run:
    """Make a run, or continue it; options of the request and those of ``certify_run`` side by side."""
    names = {field.name for field in fields(CertifyRequest)}
    asked = {key: value for key, value in options.items() if key in names}
    rest = {key: value for key, value in options.items() if key not in names}
    return certify_run(smoothed, data, CertifyRequest(sigma, **asked), out, **rest)


def small_run(out: Path, policy: str = "fixed", **options: Any) -> dds.Run:
    """Make the run, or continue it."""
    settings = {"n0": 20, "n": N, "seed": 5, "model_name": "half"} | options
    return certified(small_smoothed(), small_data(), POLICIES[policy](), out, **settings)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows as they stand in the file, without the time they took."""
    return [json.loads(line) | {"seconds": 0} for line in (path / "results.jsonl").read_text().splitlines()]
