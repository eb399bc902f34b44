"""Names that are not UTF-8, or that the locale cannot say: escaped once, where they enter; their files are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.data import Dataset
from ddsmoothing.files import file_name, file_names
from ddsmoothing.training.config import TrainConfig

SOURCE = Path(dds.__file__).parent
LATIN, UMLAUT = b"M\xfcller", "Müller".encode()
FEW = "--n0 10 --n 50 --seed 0 --max 2"
COMMANDS = [
    f"certify --model U.safetensors --data U.npz --sigma 0.25 {FEW} --out U_run",
    f"certify --model U.safetensors --data U.npz --sigma 0.25 {FEW} --out U_run",
    "status U_run",
    "analyze U_run --format csv --out U.csv",
    "analyze U_run",
    "report U_run --thumbnails none --out U.html",
    "card U_run --out U.json --markdown U.md",
    "export U_run --format dds U.tsv",
    "import U.tsv --out U_import",
    "verify U_run",
    "optimize --model U.safetensors --data U.npz --n 50 --seed 0 --max 1 --out U_sigmas.json",
    "sigmas export U_sigmas.json U.pth",
    "sigmas import U.pth --model U.safetensors --data U.npz --max 1 --out U_again.json",
    "memory apply U_run --data U.npz --store U.memory --out U_memory",
    "memory query --store U.other --model U.safetensors --input U.npz --sigma 0.25 --n0 10 --n 50",
    "predict --model small-cnn --num-classes 2 --random-weights --data folder:U_images --sigma 0.25 --n 50 --seed 0",
    "train --model small-cnn --data U.npz --batch 8 --epochs 1 --seed 0 --out U_train",
    "train --model small-cnn --data U.npz --batch 8 --epochs 1 --seed 0 --out U_train",
]
DRIVER = """
import os, sys
from ddsmoothing.cli import script
name, commands = sys.argv[1], sys.argv[2:]
for command in commands:
    sys.argv = ["ddsmoothing", *(word.replace("U", name) for word in command.split())]
    try:
        script()
    except SystemExit as end:
        print("exit", end.code, command)
"""


def run(folder: Path, name: bytes, commands: list[str], environment: dict[str, str]) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, name, *commands],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SOURCE.parent)} | environment,
        capture_output=True,
        check=False,
    )
    return done.stdout.decode(), done.stderr.decode()


def filled(folder: Path, name: bytes) -> Path:
    """A model, a data set and images under this name."""
    place, data = folder / os.fsdecode(name), dds.load_data("fashion-mnist-sample")
    with Path(f"{place}.npz").open("wb") as file:
        np.savez(file, x=data.x[:24], y=data.y[:24])  # type: ignore[index]
    shutil.copy(SOURCE / "assets" / "fashion-mnist-cnn.safetensors", f"{place}.safetensors")
    for label in ("a", place.name):
        inner = Path(f"{place}_images") / label
        inner.mkdir(parents=True)
        Image.fromarray(data.x[0, 0]).save(inner / f"{place.name}.png")
    return place


@pytest.mark.parametrize(
    ("name", "environment", "shown"),
    [(LATIN, {}, r"M\xfcller"), (UMLAUT, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "Müller")],
    ids=["latin-1", "C locale"],
)
def test_every_command_takes_such_names(name: bytes, environment: dict[str, str], shown: str, tmp_path: Path) -> None:
    """They ended in tracebacks: after a whole search, in an epoch with nothing saved, or with a half-made folder."""
    place = filled(tmp_path, name)
    out, err = run(tmp_path, name, COMMANDS, environment)
    assert "Traceback" not in err
    ended = [line for line in out.splitlines() if line.startswith("exit")]
    assert ended == [f"exit 0 {command}" for command in COMMANDS], err
    header = json.loads(Path(f"{place}_run", "header.json").read_text(encoding="utf-8"))
    assert header["data"]["name"] == f"{shown}.npz"
    assert header["model"]["name"] == f"{shown}.safetensors"
    assert header["config"]["data"] == f"{shown}.npz"
    assert json.loads(Path(f"{place}_train", "config.json").read_text(encoding="utf-8"))["data"] == f"{shown}.npz"
    assert json.loads(Path(f"{place}_import", "imported.json").read_text(encoding="utf-8"))["source"] == f"{shown}.tsv"


def test_errors_show_such_names(tmp_path: Path) -> None:
    commands = [
        "predict --model Unone.safetensors --data fashion-mnist-sample --sigma 0.25",
        "predict --model fashion-mnist-cnn --data Unone.npz --sigma 0.25",
        "predict --model U --data U --sigma 0.25",
        "analyze Unone",
    ]
    out, err = run(tmp_path, LATIN, commands, {})
    assert [line.split()[1] for line in out.splitlines()] == ["1", "1", "2", "1"]
    assert len(err.splitlines()) == len(commands)
    assert all(line.startswith("error: ") and r"M\udcfcller" in line for line in err.splitlines())


def test_names_enter_a_data_set_a_run_and_a_configuration_escaped(
    linear: dds.SmoothedClassifier, pixels: torch.Tensor, tmp_path: Path, npz: Callable[..., Any]
) -> None:
    raw = os.fsdecode(LATIN)
    data = Dataset(name=raw, split="test", x=pixels, y=[0] * 12, classes=(raw, "b"))
    assert (data.name, data.classes) == (r"M\xfcller", (r"M\xfcller", "b"))
    command = {"data": raw, "sigma": 0.1}
    made = certify_run(linear, data, CertifyRequest(0.1, n=50), tmp_path / "run", model_name=raw, command=command)
    assert (made.header.model.name, made.header.config["data"]) == (r"M\xfcller", r"M\xfcller")
    config = TrainConfig(data=raw, model="small-cnn", init=raw)
    assert config.data == raw  # which is where the file is
    assert json.loads(config.model_dump_json())["init"] == r"M\xfcller"
    assert file_names({"a": raw, "b": Path(raw), "c": 3, "d": None}) == {
        "a": r"M\xfcller", "b": r"M\xfcller", "c": 3, "d": None
    }  # fmt: skip
    assert file_name(file_name(raw)) == file_name(raw)


def test_names_of_classes_come_from_the_data_or_else_from_the_model(
    model: torch.nn.Module, linear: dds.SmoothedClassifier, data: Dataset, pixels: torch.Tensor, tmp_path: Path
) -> None:
    asked, smoothed = CertifyRequest(0.25, n0=20, n=200), dds.SmoothedClassifier(model)
    run = certify_run(smoothed, data, replace(asked, skip=500), tmp_path / "model", model_name="m")
    assert run.header.config["classes"][9] == "Ankle boot"
    named = Dataset(name="a", split="test", x=data.x[:2], y=data.y[:2], classes=tuple("abcdefghij"))
    run = certify_run(smoothed, named, asked, tmp_path / "data", model_name="m")
    assert run.header.config["classes"] == list("abcdefghij")
    silent = Dataset(name="a", split="test", x=pixels, y=[0] * 12)
    run = certify_run(linear, silent, asked, tmp_path / "none", model_name="m")
    assert "classes" not in run.header.config
