"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.certificate import certificate_for
from ddsmoothing.cli import main
from ddsmoothing.sigma import SigmaPolicy
from reference import Half
from run_helpers import certified

THRESHOLD = 100.5 / 255  # between two grid points, so that rounding to the grid does not move the boundary


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    return dds.load_model("fashion-mnist-cnn")


@pytest.fixture(scope="session")
def data() -> dds.Dataset:
    return dds.load_data("fashion-mnist-sample")


@pytest.fixture(scope="session")
def smoothed(model: torch.nn.Module) -> dds.SmoothedClassifier:
    return dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)


@pytest.fixture
def half() -> Half:
    """Class 1 where the first of three pixels exceeds THRESHOLD."""
    return Half([1.0, 0.0, 0.0], THRESHOLD)


@pytest.fixture
def linear(half: Half) -> dds.SmoothedClassifier:
    return dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, any_range=True)


@pytest.fixture
def pixels() -> torch.Tensor:
    """Twelve inputs on the grid, six on each side of the boundary of ``half``."""
    x = torch.full((12, 3), 7, dtype=torch.uint8)
    x[:, 0] = torch.tensor([0, 20, 40, 60, 80, 95, 106, 120, 140, 160, 200, 255])
    return x


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command line in this process."""

    def run(*args: object) -> Answer:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def make_run(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> Callable[..., dds.Run]:
    """A small run on the shipped data and model."""

    def make(out: Path, policy: SigmaPolicy | None = None, norm: str = "l2", **options: object) -> dds.Run:
        used, vote = smoothed, "plurality" if options.get("bound") == "two-class" else "pairwise"
        vote = str(options.pop("vote", vote))
        if norm == "l1" or vote != smoothed.vote:
            certificate = certificate_for(norm)
            used = dds.SmoothedClassifier(smoothed.model, certificate, num_classes=10, vote=vote)
        options = {"n0": 20, "n": 200, "skip": 50, "maximum": 12, "seed": 3} | options
        policy = policy or SigmaPolicy.fixed(0.25)
        return certified(used, data, policy, out, model_name="fashion-mnist-cnn", **options)

    return make


@pytest.fixture(scope="session")
def run_l2(make_run: Callable[..., dds.Run], tmp_path_factory: pytest.TempPathFactory) -> dds.Run:
    return make_run(tmp_path_factory.mktemp("runs") / "l2")


@pytest.fixture(scope="session")
def run_l1(make_run: Callable[..., dds.Run], tmp_path_factory: pytest.TempPathFactory) -> dds.Run:
    return make_run(tmp_path_factory.mktemp("runs") / "l1", norm="l1", bound="two-class")


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an npz file."""

    def write(name: str = "data.npz", **arrays: np.ndarray) -> Path:
        np.savez(tmp_path / name, **arrays)  # type: ignore[arg-type]
        return tmp_path / name

    return write
