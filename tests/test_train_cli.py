from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddsmoothing.cli import main
from ddsmoothing.cli.interrupts import asked_to_stop
from ddsmoothing.cli.train import PLACES
from ddsmoothing.errors import DdsmoothingError
from ddsmoothing.models import load_model, spec_of
from ddsmoothing.training import PRESETS, TrainConfig, resolve, train
from ddsmoothing.training.checkpoint import is_checkpoint, load_checkpoint
from ddsmoothing.training.log import METRICS, read_metrics
from ddsmoothing.training.loop import CHECKPOINT
from ddsmoothing.training.options import SECTIONS
from fuzzing import cases
from training_helpers import contents, same, toy_config, toy_data, toy_model

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small npz of the format and size of Fashion-MNIST."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    data = toy_data(80, (1, 28, 28))
    np.savez(path, x=np.asarray(data.x), y=data.y)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in each of the files of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = generator.integers(0, 256, (10, 1 + 3072)).astype(np.uint8)
        rows[:, 0] = np.arange(10)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder.parent


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three photographs in each split, of different sizes."""
    folder = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (folder / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (260 + 4 * i, 300, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return folder


# presets

OF_PAPER = {"gaussian", "smoothadv", "macer"}
OURS = {
    "cifar10-consistency": "consistency",
    "cifar10-catrs": "catrs",
    "imagenet-catrs": "catrs",
    "fashion-mnist-catrs": "catrs",
    "fashion-mnist-conditional": "gaussian",
    "fashion-mnist-denoiser": "denoiser",
    "fashion-mnist-selector": "selector",
    "cifar10-denoised": "gaussian",
    "imagenet-denoised": "gaussian",
}
DENOISED = """
import torch
from torch import nn
class Denoiser(nn.Module):
    takes_sigma = True
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, y, sigma):
        return y - sigma.reshape(-1, 1, 1, 1) * self.conv(y)
class Denoised(nn.Module):
    takes_sigma = True
    def __init__(self):
        super().__init__()
        self.denoiser = Denoiser()
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    def forward(self, x, sigma):
        return self.classifier(self.denoiser(x, sigma))
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A denoised classifier of colour images, as code."""
    (tmp_path / "denoised_net.py").write_text(DENOISED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "denoised_net:Denoised"


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("cifar10")])
def test_each_cifar_preset_trains_two_batches(preset: str, cifar: Path, tmp_path: Path, cli: Cli, code: str) -> None:
    # the real data format, transform, objective and source of sigma; fewer images a batch, fewer copies, a smaller net
    moving = ["--switch-epoch", 0, "--sigma-samples", 2] if preset.endswith("-dds") else []
    copies = ["--copies", 4] if "macer" in preset else []
    own = ["--confidence", "own"] if "catrs" in preset else []
    model = code if "denoised" in preset else "cifar-resnet20"
    places = ["--data", f"cifar10:{cifar}", "--model", model, "--out", tmp_path / "run", "--seed", 1]
    answer = cli("train", "--preset", preset, *places, *moving, *copies, *own, *small(4))
    assert answer.code == 0, answer.err
    check_trained(tmp_path / "run", preset, code)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("imagenet")])
def test_each_imagenet_preset_trains_two_batches(
    preset: str, imagenet: Path, tmp_path: Path, cli: Cli, code: str
) -> None:
    # as above at 224 pixels; a small network in place of the ResNet-50, which takes seconds a batch on a CPU
    own = ["--confidence", "own"] if "catrs" in preset else []
    model = code if "denoised" in preset else "small-cnn"
    places = ["--data", f"imagenet:{imagenet}", "--model", model, "--out", tmp_path / "run", "--seed", 1]
    answer = cli("train", "--preset", preset, *places, *own, *small(2))
    assert answer.code == 0, answer.err
    check_trained(tmp_path / "run", preset, code)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("fashion-mnist")])
def test_each_fashion_mnist_preset_trains_two_batches(
    preset: str, images: Path, tmp_path: Path, cli: Cli, code: str
) -> None:
    own = ["--confidence", "own"] if "catrs" in preset else []
    if preset == "fashion-mnist-selector":
        own = ["--predictions", tmp_path / "radii"]
        made = ["predictions", "--model", "fashion-mnist-cnn", "--experts", "0.25,1", "--n", 2, "--data", images]
        assert cli(*made, "--out", tmp_path / "radii").code == 0
    places = ["--data", images, "--out", tmp_path / "run", "--seed", 1]
    answer = cli("train", "--preset", preset, *places, *own, "--warmup", 0, *small(8))
    assert answer.code == 0, answer.err
    check_trained(tmp_path / "run", preset, code)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["imagenet-smoothadv-dds", "imagenet-macer"])
def test_imagenet_presets_train_their_resnet50(
    preset: str, imagenet: Path, tmp_path: Path, cli: Cli, code: str
) -> None:
    places = ["--data", f"imagenet:{imagenet}", "--out", tmp_path / "run", "--seed", 1]
    answer = cli("train", "--preset", preset, *places, *small(2))
    assert answer.code == 0, answer.err
    check_trained(tmp_path / "run", preset, code)


def small(batch: int) -> list[object]:
    return [
        "--batch",
        batch,
        "--epochs",
        1,
        "--set",
        "batches=2",
        "--validation",
        0.1,
        "--device",
        "cpu",
        "--no-preflight",
    ]


def check_trained(out: Path, preset: str, code: str) -> None:
    config = TrainConfig.model_validate_json((out / "config.json").read_bytes())
    assert config.objective == OURS.get(preset, preset.split("-")[1])
    sigma = load_checkpoint(out / CHECKPOINT).sigma
    assert (len(sigma.unique()) > 1) == (preset.endswith("-dds") or isinstance(config.sigma, tuple))
    assert (out / "sigmas-train.json").exists() == preset.endswith("-dds")
    assert len(read_metrics(out)) == 1
    arch = code if "denoised" in preset else None
    model = load_model(str(out / "model.safetensors"), arch=arch)
    spec = spec_of(model)
    assert spec is not None
    assert spec.sigma_range == (config.sigma if isinstance(config.sigma, tuple) else None)


def test_every_preset_is_a_configuration() -> None:
    papers = {f"{d}-{k}{end}" for d in ("cifar10", "imagenet") for k in OF_PAPER for end in ("", "-dds")}
    assert set(PRESETS) == papers | set(OURS)
    for name in PRESETS:
        settings = {"catrs.confidence": "own"} if "catrs" in name else {}
        settings |= {"predictions": "radii"} if "selector" in name else {}
        config = resolve(preset=name, settings=settings)
        assert config.objective == OURS.get(name, name.split("-")[1])
        assert (config.data_dependent is not None) == name.endswith("-dds")


def test_a_preset_for_cat_rs_asks_for_predictions(images: Path, tmp_path: Path, cli: Cli) -> None:
    answer = cli("train", "--preset", "fashion-mnist-catrs", "--data", images, "--out", tmp_path / "run")
    assert answer.code == 2
    assert "expected one of predictions (a file) and teacher (a model), or confidence 'own'" in answer.err
    assert answer.err.count("\n") == 1


# the command


def test_a_run_ends_with_the_command_to_run_next_and_that_command_works(images: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["--data", images, "--model", "small-cnn", "--sigma", 0.2, "--epochs", 2, "--batch", 16, "--seed", 1]
    answer = cli("train", *options, "--data-dependent", "--sigma-step", 0.01, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    line = next(line for line in answer.out.splitlines() if line.startswith("next: ddsmoothing "))
    assert "--data-dependent --sigma0 0.2" in line
    command = line.removeprefix("next: ddsmoothing ").replace("--out RUN", f"--out {tmp_path / 'certified'}").split()
    assert cli(*command, "--n", 100, "--no-preflight").code == 0
    lines = [line for line in answer.err.splitlines() if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for part in (": loss ", ", train ", ", noisy ", ", clean ", ", sigma ", " s left"):
        assert part in lines[0]
    assert "left" not in lines[1]
    plain = cli("train", *options, "--max", 40, "--out", tmp_path / "plain")
    assert "--sigma 0.2 " in plain.out
    other = cli("train", *options, "--max", 40, "--out", tmp_path / "run")
    assert other.code == 1
    assert other.err.startswith("error: ")
    assert "maximum was None, now 40" in other.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--set", "epoch=3"], "Did you mean 'epochs'"),
        (["--set", "epochs"], "NAME=VALUE"),
        (["--sigma", "a"], "expected numbers"),
        (["--objective", "mazer"], "objective"),
        (["--model", "small-cn"], "small-cnn"),
        (["--augmentation", "cifar"], "cifar10"),
        (["--preset", "cifar10-maser"], "Did you mean 'cifar10-macer'"),
        (["--init", "no.pt"], "no.pt"),
        (["--sigma-init", "no.json"], "no.json"),
        (["--num-classes", "2"], "label 2"),
        (["--data", "no.npz"], "no.npz"),
        (["--condition", "film"], "expected a range"),
        (["--condition", "films", "--sigma", "0.1,0.5"], "condition"),
        (["--objective", "catrs"], "expected one of predictions"),
        (["--objective", "catrs", "--predictions", "no.safetensors"], "no.safetensors"),
        (["--objective", "catrs", "--teacher", "small-cm"], "small-cnn"),
        (["--objective", "denoiser"], "does not train"),
        (["--freeze", "denoiser", "--no-preflight"], "needs a model with the parts"),
        (["--optimizer", "adam"], "optimizer"),
        (["--denoiser", "no.safetensors"], "needs freeze"),
        (["--denoiser", "no.safetensors", "--freeze", "denoiser"], "no.safetensors"),
        (["--resize", "32"], "expected a denoiser"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    options: list[str], named: str, images: Path, tmp_path: Path, cli: Cli
) -> None:
    answer = cli("train", "--data", images, "--model", "small-cnn", "--epochs", 1, "--out", tmp_path / "run", *options)
    assert answer.code in (1, 2)
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert named in answer.err
    assert not (tmp_path / "run").exists()


def test_the_preflight_stops_on_a_model_that_is_no_function(
    images: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_net.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = torch.nn.Linear(784, 3)\n"
        "    def forward(self, x):\n        x = x.flatten(1)\n"
        "        return self.a(x) + 100 * torch.rand(len(x), 3)\n"
        "def wrong():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 7))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, named in (("Odd", "randomness"), ("wrong", "expected logits")):
        options = ["--data", images, "--model", f"odd_net:{name}", "--epochs", 1, "--out", tmp_path / "run"]
        answer = cli("train", *options)
        assert answer.code == 1
        assert named in answer.err
        assert not (tmp_path / "run").exists()
    assert cli("train", *options[:2], "--model", "odd_net:Odd", *options[4:], "--no-preflight").code == 0


@pytest.mark.parametrize("condition", ["channel", "film"])
def test_the_preflight_takes_networks_that_are_told_sigma(
    condition: str, images: Path, tmp_path: Path, cli: Cli
) -> None:
    options = ["--model", "small-cnn", "--condition", condition, "--sigma", "0.1,0.8", "--epochs", 1, "--seed", 1]
    how = ["--objective", "catrs", "--confidence", "own", "--copies", 2, "--precision", "bf16", "--batch", 16]
    answer = cli("train", "--data", images, *options, *how, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "--data-dependent --sigma0 0.283" in answer.out
    denoiser = ["--model", "small-unet", "--objective", "denoiser", "--sigma", "0.1,0.8", "--max", 20, "--epochs", 1]
    denoiser += ["--validation", 0.2]
    answer = cli("train", "--data", images, *denoiser, "--out", tmp_path / "denoiser")
    assert answer.code == 0, answer.err
    assert "PSNR " in answer.err
    assert "next:" not in answer.out


@pytest.mark.parametrize("part", ["denoiser", "classifier"])
def test_one_part_of_a_denoised_classifier_is_trained_and_gets_a_file(
    part: str, images: Path, tmp_path: Path, cli: Cli
) -> None:
    options = ["--data", images, "--batch", 16, "--epochs", 1, "--seed", 1]
    denoiser = ["--model", "small-unet", "--objective", "denoiser", "--sigma", "0.1,0.8", "--max", 32]
    assert cli("train", *options, *denoiser, "--out", tmp_path / "denoiser").code == 0
    assert cli("train", *options, "--model", "small-cnn", "--sigma", 0.1, "--out", tmp_path / "net").code == 0
    start = {name: tmp_path / name / "model.safetensors" for name in ("denoiser", "net")}
    asked = ["--denoiser", start["denoiser"], "--model", "small-cnn", "--init", start["net"], "--freeze", part]
    soft = ["--soft-targets"] if part == "classifier" else []
    answer = cli("train", *options, *asked, *soft, "--sigma", "0.1,0.8", "--max", 32, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    trained = "classifier" if part == "denoiser" else "denoiser"
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT).model
    kept = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
    before = load_model(str(start["denoiser" if part == "denoiser" else "net"])).state_dict()
    assert same({name.removeprefix("network."): value for name, value in kept.items()}, before)
    assert (tmp_path / "run" / f"{trained}.safetensors").exists()
    assert not (tmp_path / "run" / f"{part}.safetensors").exists()
    line = next(line for line in answer.out.splitlines() if line.startswith("next: ddsmoothing "))
    places = {"denoiser": start["denoiser"], "classifier": start["net"]}
    places[trained] = tmp_path / "run" / f"{trained}.safetensors"
    for name, path in places.items():
        assert f"--{name} {path}" in line
    assert "--data-dependent --sigma0 0.283" in line
    again = cli("train", *options, *asked, *soft, "--sigma", "0.1,0.8", "--max", 32, "--out", tmp_path / "run")
    assert again.code == 0, again.err
    votes = ["--denoiser", start["denoiser"], "--classifier", start["net"], "--data", images, "--sigma", 0.3, "--n", 2]
    assert cli("predictions", *votes, "--out", tmp_path / "votes").code == 0


def test_every_option_stands_in_the_configuration() -> None:
    fields = set(TrainConfig.model_fields)
    for place in PLACES.values():
        section, _, name = place.partition(".")
        assert section in fields
        if name:
            assert name in SECTIONS[section].model_fields


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_finishes_the_batch_saves_the_place_and_exits_75(images: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["--data", str(images), "--model", "small-cnn", "--batch", "2", "--epochs", "10", "--seed", "5"]
    options += ["--data-dependent", "--sigma-step", "0.01", "--no-preflight", "--device", "cpu", "--max", "40", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from ddsmoothing.cli import script; script()", "train", *options]
    process = subprocess.Popen([*command, str(tmp_path / "parts")], env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "parts" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the same command continues it" in out
    position = load_checkpoint(tmp_path / "parts" / CHECKPOINT).position
    assert 1 <= position.epoch < 10
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli("train", *options, tmp_path / "parts").code == 0
        assert cli("train", *options, tmp_path / "whole").code == 0
    finally:
        torch.set_num_threads(threads)
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    for name in ("model.safetensors", "sigmas-train.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


# damaged files

FUZZ = cases(150)
TOML = b"""epochs = 2
sigma = [0.1, 0.5]
objective = "macer"
lr = 1e-3
[macer]
beta = 8.0
weight = 3
[smoothadv]
steps = 2
"""

WORDS = [b"nan", b"-1", b"1e999", b"true", b"[[a]]\n", b'"x"', b"{}", b"99999999999999999999", b"\x00", b"\x1b"]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few of them changed, cut off, doubled or replaced by words that mean something."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(out) - 1)))
        what = draw(st.integers(0, 4))
        if what == 0 and out:
            out[place] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            del out[place : place + draw(st.integers(1, 60))]
        elif what == 2:
            out[place:place] = draw(st.binary(min_size=1, max_size=12))
        elif what == 3:
            words = [
                b"nan",
                b"-1",
                b"1e999",
                b"true",
                b"[[a]]\n",
                b'"x"',
                b"{}",
                b"99999999999999999999",
                b"\x00",
                b"\x1b",
            ]
            out[place:place] = draw(st.sampled_from(words))
        else:
            out[place:place] = out[: draw(st.integers(0, 40))]
    return bytes(out)


@FUZZ
@given(data=damaged(TOML))
def test_a_damaged_configuration_is_options_or_one_line_of_error(data: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(data)
    try:
        found = resolve(file=path, settings={"data": "toy", "model": "toy"})
    except DdsmoothingError as error:
        assert str(error)
    else:
        assert isinstance(found, TrainConfig)
    assert path.read_bytes() == data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "run"
    train(toy_config(epochs=1), out, model=toy_model(), data=toy_data(), device="cpu")
    return out


@FUZZ
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_and_no_file_is_changed(run: Path, data: st.DataObject) -> None:
    good = (run / CHECKPOINT).read_bytes()
    bad = data.draw(damaged(good))
    copy = run.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    (copy / CHECKPOINT).write_bytes(bad)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    if bad != good:
        with pytest.raises(DdsmoothingError):
            train(toy_config(epochs=1), copy, model=toy_model(), data=toy_data(), device="cpu")
        is_checkpoint(copy / CHECKPOINT)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_damaged_log_is_one_line_of_error(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for text in ("{\n", "3\n", '{"loss": 1}\n', '{"epoch": "a"}\n'):
        (copy / METRICS).write_text(text)
        with pytest.raises(DdsmoothingError, match="damaged"):
            train(toy_config(epochs=1), copy, model=toy_model(), data=toy_data(), device="cpu")
        assert (copy / METRICS).read_text() == text
    (copy / METRICS).write_text('{"epoch": 0, "loss": 1.0}\n{"epoch": 1, "los')  # cut off by a crash
    assert read_metrics(copy) == [{"epoch": 0, "loss": 1.0}]


OLD_OPTIONS = (  # of the five training scripts of the 2021 repository
    *("--dataset", "--arch", "--output_path", "--batch_sz", "--epochs", "--lr", "--momentum", "--weight_decay"),
    *("--step_sz", "--gamma", "--sig0_tr", "--sig0_ts", "--lr_sig", "--iter_sig_tr", "--iter_sig_ts"),
    *("--iter_sig_after", "--epoch-switch", "--gaussian_num_ds", "--gaussian_num", "--lbd", "--gam", "--beta"),
    *("--checkpoint", "--epsilon", "--num-steps", "--warmup", "--num-noise-vec", "--dataset-path", "--path-sigma"),
    "--center-only",
)


def test_every_argument_of_the_old_scripts_has_a_row_whose_successor_exists(cli: Cli) -> None:
    page = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
    section = page.split("## The five training scripts")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    old = {word for left, _ in rows for word in re.findall(r"`(--[\w-]+)", left)}
    assert old == set(OLD_OPTIONS)
    new = {word for _, right in rows for word in re.findall(r"`(--[\w-]+)", right)}
    help_text = cli("train", "--help").out
    assert all(re.search(rf"{word}\b", help_text) for word in new)


def test_help_shows_examples(cli: Cli) -> None:
    answer = cli("train", "--help")
    assert answer.code == 0
    assert "ddsmoothing train --preset cifar10-macer-dds" in answer.out
    assert main(["train"]) == 2
