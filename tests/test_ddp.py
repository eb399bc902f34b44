from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ddsmoothing.training import train
from ddsmoothing.training.checkpoint import load_checkpoint
from ddsmoothing.training.log import read_metrics
from ddsmoothing.training.loop import CHECKPOINT
from training_helpers import MODELS, MOVING, contents, toy_config, toy_data

HERE = Path(__file__).parent
OPTIONS = {"objective": "macer", "copies": 2, "data_dependent": MOVING | {"steps_test": 1}, "batch": 7, "epochs": 2}


def run_here(out: Path, kind: str = "plain", **options: Any) -> None:
    """Train in this process alone."""
    train(toy_config(**(OPTIONS | options)), out, model=MODELS[kind](norm=False), data=toy_data(), device="cpu")


def run(out: Path, size: int, **options: Any) -> None:
    """Train in so many processes, which find each other as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "train_worker.py"), str(out), json.dumps(OPTIONS | options)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run_here(out)
    return out


def close(a: Path, b: Path) -> None:
    one, two = contents(a), contents(b)
    assert one.keys() == two.keys()
    assert one["position"] == {**two["position"], "best": one["position"]["best"]}
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, two[name], atol=1e-5, rtol=1e-4), name
    assert float((one["sigma"] - two["sigma"]).abs().max()) < 1e-5
    for left, right in zip(read_metrics(a), read_metrics(b), strict=True):
        assert left.keys() == right.keys()
        for key in (key for key in left if left[key] is not None and key != "seconds"):
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-6), key


def test_two_processes_give_what_one_gives(alone: Path, tmp_path: Path) -> None:
    # 54 samples in batches of 7: shares of 4 and 3, and last batches of 5; every sample's noise is its own
    run(tmp_path / "two", 2)
    close(alone, tmp_path / "two")
    assert len(load_checkpoint(alone / CHECKPOINT).sigma.unique()) > 40


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("told", {"objective": "catrs", "copies": 3, "catrs": {"confidence": "own"}}),
        ("told", {"objective": "consistency", "sigma": (0.1, 0.4), "data_dependent": None, "optimizer": "adamw"}),
        ("denoiser", {"objective": "denoiser", "sigma": (0.1, 0.4), "data_dependent": None, "optimizer": "adamw"}),
    ],
    ids=["catrs", "consistency", "denoiser"],
)
def test_two_processes_give_what_one_gives_by_every_objective(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    # CAT-RS: how many inputs are attacked differs from process to process; epochs enough that there are such inputs
    options = {"lr": 0.01, "epochs": 3, **options}
    run_here(tmp_path / "one", kind, **options)
    run(tmp_path / "two", 2, kind=kind, **options)
    close(tmp_path / "one", tmp_path / "two")
    assert kind == "denoiser" or read_metrics(tmp_path / "one")[-1]["accuracy"] > 0.5


@pytest.mark.slow
def test_two_processes_stop_at_the_same_batch_and_one_can_go_on(alone: Path, tmp_path: Path) -> None:
    run(tmp_path / "parts", 2, stop_after=3)
    position = load_checkpoint(tmp_path / "parts" / CHECKPOINT).position
    assert (position.epoch, position.step) == (0, 3)
    run_here(tmp_path / "parts")
    close(alone, tmp_path / "parts")
