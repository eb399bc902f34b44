from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing import doctor
from ddsmoothing.doctor import machine
from ddsmoothing.errors import ModelError
from reference import Half

L2 = dds.L2Certificate()


def examined(model: Any, data: dds.Dataset, **options: Any) -> dict[str, doctor.Check]:
    smoothed = dds.SmoothedClassifier(model, L2, num_classes=options.pop("num_classes", 10))
    return {check.name: check for check in doctor.quick_check(smoothed, data, options.get("ids"), options.get("sigma"))}


class Wrapped(nn.Module):
    """A model and a function of its logits."""

    def __init__(self, model: nn.Module, after: Callable[[torch.Tensor], torch.Tensor], before: Any = None) -> None:
        super().__init__()
        self.model, self.after, self.before = model, after, before or (lambda x: x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.model(self.before(x)))


def test_a_good_model_passes(model: nn.Module, data: dds.Dataset) -> None:
    checks = examined(model, data, sigma=0.25)
    assert {check.status for check in checks.values()} == {"ok"}
    wanted = {"logits", "BatchNorm", "randomness", "batch", "normalisation", "range", "grid", "accuracy", "noise"}
    assert set(checks) == wanted
    doctor.stop_on_failure(list(checks.values()))


FAULTS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str, str, str]] = [
    ("nan", lambda z: z * float("nan"), "logits", "fail", "NaN or infinite logits on clean inputs"),
    ("infinite", lambda z: z / 0.0, "logits", "fail", "NaN or infinite"),
    ("probabilities", lambda z: z.softmax(1), "logits", "warn", "look like probabilities"),
    ("constant", lambda z: torch.zeros_like(z), "logits", "warn", "same logits for all"),
    ("constant", lambda z: torch.zeros_like(z), "accuracy", "fail", "chance is 10 %"),
    ("shape", lambda z: z[:, :5], "logits", "fail", r"\(64, 5\), expected logits \(64, 10\)"),
    ("text", lambda z: "logits", "logits", "fail", "returns str"),  # type: ignore[arg-type, return-value]
    ("random", lambda z: z + torch.randn_like(z) * 20, "randomness", "fail", "two passes differ by"),
    ("a little random", lambda z: z + torch.rand_like(z) * 1e-7, "randomness", "warn", "0 classes changed"),
    ("mates", lambda z: z - z.mean(0), "batch", "fail", "with the other inputs of its batch"),
    ("order", lambda z: z.roll(3, 1), "accuracy", "fail", "another order it would be 9. %: check their order"),
]


@pytest.mark.parametrize(("name", "after", "check", "status", "message"), FAULTS, ids=[f[0] for f in FAULTS])
def test_faults_of_a_model_are_found(
    name: str, after: Any, check: str, status: str, message: str, model: nn.Module, data: dds.Dataset
) -> None:
    found = examined(Wrapped(model, after), data)[check]
    assert found.status == status, found
    import re

    assert re.search(message, found.message), found.message


def test_normalising_twice_and_inputs_of_another_range(model: nn.Module, data: dds.Dataset) -> None:
    checks = examined(Wrapped(model, lambda z: z, before=lambda x: x / 255), data)
    assert checks["accuracy"].status == "fail"
    assert "normalisation (inside the model, once)" in checks["accuracy"].message
    assert checks["normalisation"].status == "ok"
    dark = dds.Dataset(name="dark", split="test", x=data[:][0].numpy() / 255, y=data.y)
    assert examined(model, dark)["range"].status == "warn"
    wide = dds.Dataset(name="wide", split="test", x=data[:][0].numpy() * 2, y=data.y)
    checks = examined(model, wide)
    assert "expected [0, 1]" in checks["range"].message
    assert checks["grid"].status == "note"


def test_modes_and_batch_norm(data: dds.Dataset) -> None:
    def net(**options: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784, **options), nn.Linear(784, 10))

    torch.manual_seed(0)
    assert examined(net(track_running_stats=False), data)["BatchNorm"].status == "fail"
    checks = examined(net(), data)
    assert "never saw a batch" in checks["BatchNorm"].message
    assert checks["mode"].status == "note"
    assert checks["normalisation"].status == "note"


def test_the_model_leaves_as_it_came(model: nn.Module, data: dds.Dataset) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    examined(net, data, sigma=0.3)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_noise_that_drowns_the_inputs(model: nn.Module, data: dds.Dataset) -> None:
    assert examined(model, data, sigma=8.0)["noise"].status == "fail"
    assert "at chance, so nearly all inputs would abstain" in examined(model, data, sigma=8.0)["noise"].message
    fragile = Wrapped(model, lambda z: z, before=lambda x: torch.where((x < -1).any(), torch.nan, 1.0) * x)
    assert "NaN or infinite logits under noise" in examined(fragile, data, sigma=1.0)["noise"].message


def test_few_inputs_and_no_labels(model: nn.Module, data: dds.Dataset, half: Half) -> None:
    few = dds.Dataset(name="few", split="test", x=data.x[:3], y=(data.y[:3] + 1) % 10)  # type: ignore[index, operator]
    assert examined(model, few)["accuracy"].status == "warn"
    none = dds.Dataset(name="none", split="test", x=data.x[:3], y=None)
    assert "accuracy" not in examined(model, none)
    other = dds.Dataset(name="other", split="test", x=data.x[:3], y=np.array([0, 1, 12]))
    assert "label 12 but the model has 10 classes" in examined(model, other)["labels"].message


def test_the_subset_to_come_is_looked_at(model: nn.Module, data: dds.Dataset) -> None:
    y = data.y.copy()  # type: ignore[union-attr]
    y[:500] = (y[:500] + 1) % 10
    wrong = dds.Dataset(name="half wrong", split="test", x=data.x, y=y)
    assert examined(model, wrong, ids=list(range(500)))["accuracy"].status == "fail"
    assert examined(model, wrong, ids=list(range(500, 1000)))["accuracy"].status == "ok"


def test_a_model_that_takes_other_inputs(data: dds.Dataset) -> None:
    with pytest.raises(ModelError, match="does not take inputs of shape"):
        examined(nn.Linear(3, 10), data)


def test_stop_names_the_override(model: nn.Module, data: dds.Dataset) -> None:
    checks = list(examined(Wrapped(model, lambda z: z.roll(3, 1)), data).values())
    with pytest.raises(ModelError, match=r"preflight, accuracy: .* To go on all the same, add --no-preflight\."):
        doctor.stop_on_failure(checks)


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_numbers_and_machine(
    smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = by_name(doctor.examine(smoothed, data, sigma=0.25, n=1000, alpha=0.001, out=tmp_path / "a" / "b"))
    assert checks["samples"].message == "n=1000 at alpha=0.001 certifies at most 2.463 sigma, 0.615 at sigma 0.25."
    assert checks["folder"].status == "ok"
    assert "forwards/s" in checks["speed"].message
    assert "threads" in checks["devices"].message
    assert "torchvision" in checks["extras"].message
    assert by_name(doctor.examine(smoothed, data, n=5))["samples"].status == "fail"
    (tmp_path / "file").write_text("")
    assert by_name(list(machine.machine_checks(tmp_path / "file")))["folder"].status == "fail"

    class Found:
        version = "1.0.0"

    monkeypatch.setattr(machine, "distribution", lambda name: Found())
    assert "overwrite each other's files" in by_name(list(machine.machine_checks()))["package"].message


def test_command(cli: Callable[..., Answer], npz: Callable[..., Path], data: dds.Dataset, tmp_path: Path) -> None:
    options = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
    answer = cli("doctor", *options, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "ok   accuracy      9" in answer.out
    assert "at sigma 0.346" in answer.out  # the model's training sigma
    found = json.loads(cli("doctor", *options, "--json", "--sigma", 0.5, "--n", 5).out)
    assert {"name", "status", "message"} == set(found[0])
    wrong = npz(x=data.x[:100], y=(data.y[:100] + 1) % 10)  # type: ignore[index, operator]
    answer = cli("doctor", "--model", "fashion-mnist-cnn", "--data", wrong)
    assert answer.code == 1
    assert "FAIL accuracy" in answer.out
    assert cli("doctor", *options, "--n", 5).code == 1
    assert "sigma is -1" in cli("doctor", *options, "--sigma", -1).err
