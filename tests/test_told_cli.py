"""A denoiser before a classifier, and networks by sigma, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ddsmoothing as dds
from ddsmoothing.models import model_hash, save_model, spec_of

BLUR = """
import torch
from ddsmoothing.models import PixelDenoiser

class Blur(torch.nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.size = size

    def forward(self, y, sigma):
        weight = (sigma / (sigma + 0.5))[:, None, None, None].to(y.dtype)
        smooth = torch.nn.functional.avg_pool2d(y, self.size, 1, self.size // 2)
        return y * (1 - weight) + smooth * weight

def build():
    return PixelDenoiser(Blur(), sigma_range=(0.1, 0.9))

def wider():
    return PixelDenoiser(Blur(5), sigma_range=(0.1, 0.9))
"""
PLACE = ("--data", "fashion-mnist-sample", "--skip", "250", "--seed", "3", "--no-preflight")
DENOISED = ("--denoiser", "blurs:build", "--classifier", "fashion-mnist-cnn")


@pytest.fixture(autouse=True)
def blurs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blurs.py").write_text(BLUR)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "blurs", raising=False)


def test_a_run_of_a_denoised_classifier(tmp_path: Path, cli: Callable[..., object]) -> None:
    out = tmp_path / "run"
    first = cli("certify", *DENOISED, *PLACE, "--sigma", 0.25, "--n", 200, "--out", out)
    assert first.code == 0, first.err
    run = dds.load_run(out)
    assert run.header.model.name == "blurs:build > fashion-mnist-cnn"
    model = dds.DenoisedClassifier(dds.load_denoiser("blurs:build"), dds.load_model("fashion-mnist-cnn"))
    assert run.header.model.sha256 == model_hash(model)
    smoothed = dds.SmoothedClassifier(
        model.eval(), dds.L2Certificate(), num_classes=10, block_size=run.header.block_size
    )
    ids = [row.id for row in run.rows]
    again = smoothed.certify(dds.load_data("fashion-mnist-sample")[ids][0], 0.25, n0=100, n=200, seed=3, ids=ids)
    assert [row.radius for row in run.rows] == again.radius.tolist()
    assert (
        cli("certify", *DENOISED, "--data", "fashion-mnist-sample", "--out", out).code == 0
    )  # continued: nothing left
    assert cli("verify", out, "--resample", 2, *DENOISED).code == 0
    other = cli(
        "certify", "--denoiser", "blurs:wider", *DENOISED[2:], *PLACE, "--sigma", 0.25, "--n", 200, "--out", out
    )
    assert other.code == 1 and "this is not the model of the run" in other.err
    unnamed = cli("certify", "--data", "fashion-mnist-sample", "--out", out)
    assert unnamed.code == 2 and "blurs:build > fashion-mnist-cnn" in unnamed.err


def test_a_search_stays_where_the_denoiser_was_trained(tmp_path: Path, cli: Callable[..., object]) -> None:
    search = ("certify", *DENOISED, *PLACE, "--data-dependent", "--n", 100)
    assert cli(*search, "--sigma0", 0.5, "--out", tmp_path / "run").code == 0
    policy = dds.load_run(tmp_path / "run").header.policy
    assert (policy.sigma_min, policy.sigma_max) == (0.125, 0.9)
    outside = cli(*search, "--sigma0", 1.0, "--out", tmp_path / "other")
    assert outside.code == 2 and "sigma0=1.0 lies outside [0.25, 0.9]" in outside.err
    wider = (*search, "--sigma0", 1.0, "--sigma-max", 1.5, "--out", tmp_path / "other")
    assert cli(*wider).code == 0
    assert cli(*search, "--out", tmp_path / "third").code == 2  # it does not say where to start


@pytest.mark.parametrize("command", ["predict", "doctor", "optimize"])
def test_other_commands_take_a_denoised_classifier(tmp_path: Path, cli: Callable[..., object], command: str) -> None:
    options = {
        "predict": ("--skip", 250, "--sigma", 0.25, "--n", 50, "--seed", 0, "--json"),
        "doctor": ("--sigma", 0.25, "--json"),
        "optimize": ("--skip", 250, "--sigma0", 0.3, "--seed", 0, "--out", tmp_path / "sigmas.json"),
    }[command]
    done = cli(command, *DENOISED, "--data", "fashion-mnist-sample", *options)
    assert done.code == 0, done.err
    if command == "predict":
        answers = [json.loads(line) for line in done.out.splitlines()]
        assert sum(one["label"] == one["prediction"] for one in answers) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--denoiser", "blurs:build"), "--denoiser and --classifier, which are one model together"),
        (("--classifier", "fashion-mnist-cnn"), "--denoiser and --classifier, which are one model together"),
        ((*DENOISED, "--model", "fashion-mnist-cnn"), "--denoiser and --classifier, which are one model together"),
        (("--model", "fashion-mnist-cnn", "--resize", 3), "--resize is of denoised images"),
        (("--denoiser", "blurs:build", "--classifier", "blurs:nothing"), "cannot import"),
        (("--denoiser", "blur", "--classifier", "fashion-mnist-cnn"), "unknown denoiser 'blur'"),
        ((), "expected --model"),
    ],
)
def test_what_is_said_of_the_model_has_to_fit(cli: Callable[..., object], options, message: str) -> None:
    done = cli("predict", *options, "--data", "fashion-mnist-sample", "--max", 1, "--sigma", 0.25)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_denoised_images_are_resized_for_the_classifier(tmp_path: Path, cli: Callable[..., object]) -> None:
    """A classifier of 14x14 images behind a denoiser of 28x28 ones."""
    (tmp_path / "quarters.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 10))\n"
    )
    predict = (
        "predict",
        "--denoiser",
        "blurs:build",
        "--classifier",
        "quarters:build",
        "--data",
        "fashion-mnist-sample",
    )
    assert cli(*predict, "--resize", 14, "--max", 1, "--sigma", 0.25, "--n", 50).code == 0
    refused = cli(*predict, "--max", 1, "--sigma", 0.25, "--n", 50)
    assert refused.code == 1 and "does not take inputs of shape" in refused.err


def test_networks_by_sigma(tmp_path: Path, cli: Callable[..., object]) -> None:
    model = dds.load_model("fashion-mnist-cnn")
    save_model(model, spec_of(model), tmp_path / "net.safetensors")
    (tmp_path / "two.toml").write_text(
        'sigma_range = [0.1, 1.0]\n[[range]]\nupper = 0.4\nmodel = "net.safetensors"\n'
        '[[range]]\nupper = inf\nmodel = "fashion-mnist-cnn"\n'
    )
    named = ("--model", f"by-sigma:{tmp_path / 'two.toml'}")
    searched = ("--data-dependent", "--sigma0", 0.3, "--n", 200)
    assert cli("certify", *named, *PLACE, *searched, "--out", tmp_path / "run").code == 0
    run = dds.load_run(tmp_path / "run")
    policy = run.header.policy
    assert (policy.sigma_min, policy.sigma_max) == (0.1, 1.0)
    alone = cli(
        *("certify", "--model", "fashion-mnist-cnn", *PLACE, *searched, "--sigma-min", 0.1, "--sigma-max", 1.0),
        *("--block-size", run.header.block_size, "--out", tmp_path / "alone"),
    )
    assert alone.code == 0, alone.err
    pairs = zip(run.rows, dds.load_run(tmp_path / "alone").rows, strict=True)
    assert all((a.sigma, a.radius) == (b.sigma, b.radius) for a, b in pairs)  # both networks are the same one
    assert cli("verify", tmp_path / "run", "--resample", 2, *named).code == 0
