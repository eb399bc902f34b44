from __future__ import annotations

import json
import re
import time
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
from ddsmoothing.counting.function import check_is_function
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
    wanted = {"logits", "BatchNorm", "function", "normalisation", "range", "grid", "accuracy", "noise"}
    assert set(checks) == wanted
    doctor.stop_on_failure(list(checks.values()))


FAULTS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str, str, str]] = [
    ("nan", lambda z: z * float("nan"), "logits", "fail", "NaN or infinite logits; a certificate"),
    ("infinite", lambda z: z / 0.0, "logits", "fail", "NaN or infinite"),
    ("probabilities", lambda z: z.softmax(1), "logits", "warn", "look like probabilities"),
    ("constant", lambda z: torch.zeros_like(z), "logits", "warn", "same logits for all"),
    ("constant", lambda z: torch.zeros_like(z), "accuracy", "fail", "chance is 10 %"),
    ("shape", lambda z: z[:, :5], "logits", "fail", r"\(64, 5\) for 64 inputs, expected logits of shape \(64, 10\)"),
    ("text", lambda z: "logits", "logits", "fail", "returned str for 64 inputs"),  # type: ignore[arg-type, return-value]
    ("random", lambda z: z + torch.randn_like(z) * 20, "randomness", "fail", "two passes on the same rows differ by"),
    (
        "a little random",
        lambda z: z + torch.rand_like(z) * 1e-7,
        "randomness",
        "fail",
        "two passes on the same rows differ by",
    ),
    ("mates", lambda z: z - z.mean(0), "batch", "fail", "in a batch of 1 rows"),
    ("order", lambda z: z.roll(3, 1), "accuracy", "fail", "another order it would be 9. %: check their order"),
]


@pytest.mark.parametrize(("name", "after", "check", "status", "message"), FAULTS, ids=[f[0] for f in FAULTS])
def test_faults_of_a_model_are_found(
    name: str, after: Any, check: str, status: str, message: str, model: nn.Module, data: dds.Dataset
) -> None:
    found = examined(Wrapped(model, after), data)[check]
    assert found.status == status, found
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
    assert "statistics of a new one" in checks["BatchNorm"].message
    assert checks["mode"].status == "note"
    assert checks["normalisation"].status == "note"


def test_one_input_is_too_few_and_no_fault(model: nn.Module, data: dds.Dataset) -> None:
    checks = examined(model, data, ids=[0])
    assert (checks["logits"].status, checks["accuracy"].status) == ("ok", "note")
    assert "too few to tell it from chance" in checks["accuracy"].message


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
    assert re.search(
        "under noise of sigma 1, .*NaN or infinite", examined(fragile, data, sigma=1.0)["function"].message
    )


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
    checks = examined(nn.Linear(3, 10), data)
    assert list(checks) == ["logits"]
    assert "does not take inputs of shape (64, 1, 28, 28): RuntimeError: mat1" in checks["logits"].message


def test_stop_names_the_override(model: nn.Module, data: dds.Dataset) -> None:
    checks = list(examined(Wrapped(model, lambda z: z.roll(3, 1)), data).values())
    with pytest.raises(ModelError, match=r"preflight, accuracy: .* To go on all the same, add --no-preflight\."):
        doctor.stop_on_failure(checks)


class Kept(nn.Module):
    """A good network in a module that carries something from one line, row or call to another."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        self.calls, self.top, self.membrane = 0, 1.0, 0.0
        self.register_buffer("largest", torch.zeros(()))
        self.observer = torch.ao.quantization.MinMaxObserver()
        self.register_buffer("mean", torch.full((1, 1, 1), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.kind)(x)

    def fixed_seed(self, x: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model(x + 0.1 * torch.randn_like(x))

    def batch_size(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + torch.arange(10) * (len(x) > 1)

    def largest_of_batch(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x / x.max())

    def smallest_of_batch(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x - x.min())

    def position(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + torch.arange(len(x))[:, None] * torch.arange(10) / 100

    def first_row(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + 0.1 * x[0].mean() * torch.arange(10)

    def call_number(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.model(x).roll(self.calls // 100, 1)

    def running_maximum(self, x: torch.Tensor) -> torch.Tensor:
        self.top = max(self.top, float(x.max()))
        return self.model(x / self.top)

    def running_buffer(self, x: torch.Tensor) -> torch.Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.max()))
        return self.model(x)

    def replaced_buffer(self, x: torch.Tensor) -> torch.Tensor:
        self.largest = torch.maximum(self.largest, x.max())
        return self.model(x)

    def observed(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(self.observer(x))

    def spiking(self, x: torch.Tensor) -> torch.Tensor:
        self.membrane = 0.5 * self.membrane + x.mean()
        return self.model(x) + self.membrane * torch.arange(10)

    def hidden_dropout(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(nn.functional.dropout(x, 0.1, training=True))

    def shared_among_threads(self, x: torch.Tensor) -> torch.Tensor:
        EVERYWHERE["x"] = x
        time.sleep(0.01)
        return self.model(EVERYWHERE["x"])

    def in_place(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.sub_(self.mean).div_(0.5).mul_(0.5).add_(self.mean))

    def stashed(self, x: torch.Tensor) -> torch.Tensor:
        self.features = self.model[:-1](x)
        return self.model[-1](self.features)


EVERYWHERE: dict[str, torch.Tensor] = {}
NO_FUNCTIONS = [
    ("fixed_seed", "batch", "with its place in the batch"),
    ("batch_size", "batch", "in a batch of 1 rows"),
    ("largest_of_batch", "batch", "a row's logits move by"),
    ("smallest_of_batch", "batch", "a row's logits move by"),
    ("position", "batch", "with its place in the batch"),
    ("first_row", "batch", "with its place in the batch"),
    ("running_maximum", "calls", "logits move by"),
    ("running_buffer", "logits", "writes into largest"),
    ("replaced_buffer", "logits", "writes into largest"),
    ("observed", "logits", "writes into observer.m"),
    ("spiking", "randomness", "two passes on the same rows differ"),
    ("hidden_dropout", "randomness", "two passes on the same rows differ"),
    ("shared_among_threads", "threads", "when 2 threads call it at once"),
]


@pytest.mark.filterwarnings("ignore")  # torch says that its observers move
@pytest.mark.parametrize(("kind", "check", "message"), NO_FUNCTIONS, ids=[kind for kind, _, _ in NO_FUNCTIONS])
def test_models_that_are_no_functions_are_found(
    kind: str, check: str, message: str, model: nn.Module, data: dds.Dataset
) -> None:
    net = Kept(model, kind).eval()
    found = examined(net, data)
    assert found[check].status == "fail", found
    assert re.search(message, found[check].message), found[check].message
    smoothed = dds.SmoothedClassifier(net, L2, num_classes=10)
    with pytest.raises(ModelError, match=message):
        check_is_function(smoothed.engine, data[:4][0], 0.25, num_classes=10)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_changes_after_many_calls_is_found_by_the_thorough_check(
    model: nn.Module, data: dds.Dataset
) -> None:
    smoothed = dds.SmoothedClassifier(Kept(model, "call_number").eval(), L2, num_classes=10)
    assert "calls" not in {check.name for check in doctor.quick_check(smoothed, data)}
    found = by_name(doctor.quick_check(smoothed, data, thorough=True))
    assert found["calls"].status == "fail"
    assert found["state"].message.startswith("a pass changes calls")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["in_place", "stashed"])
def test_models_that_are_functions_pass(kind: str, model: nn.Module, data: dds.Dataset) -> None:
    net = Kept(model, kind).eval()
    x = data[:4][0]
    before = x.clone()
    found = examined(net, data, sigma=0.25)
    assert {check.status for check in found.values()} <= {"ok", "note"}
    assert ("state" in found) == (kind == "stashed")
    check_is_function(dds.SmoothedClassifier(net, L2, num_classes=10).engine, x, 0.25)
    assert torch.equal(x, before)
    assert not hasattr(net, "features")


class AtSigma(nn.Module):
    takes_sigma = True

    def __init__(self, model: nn.Module, mixed: bool) -> None:
        super().__init__()
        self.model, self.mixed = model, mixed

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scale = sigma.mean() if self.mixed else sigma[:, None]
        return self.model(x) / (1.0 + scale)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_model_that_mixes_the_sigmas_of_rows_is_found(mixed: bool, model: nn.Module, data: dds.Dataset) -> None:
    found = examined(AtSigma(model, mixed), data)
    assert ("batch" in found) == mixed
    assert mixed or found["function"].status == "ok"


def test_logits_of_one_class_far_below_the_others_hide_nothing() -> None:
    """Half's third class lies at -1e9: differences are held against each class's own size."""
    x = torch.full((4, 3), 0.4)
    half = Half([1.0, 0.0, 0.0], 0.4, num_classes=3)

    def mates(x: torch.Tensor) -> torch.Tensor:
        return half(x - 0.01 * x.mean(0))

    check_is_function(dds.SmoothedClassifier(half, L2, num_classes=3).engine, x, 0.25)
    with pytest.raises(ModelError, match="logits move"):
        check_is_function(dds.SmoothedClassifier(mates, L2, num_classes=3).engine, x, 0.25)


def test_a_hook_that_is_a_function_is_named(data: dds.Dataset) -> None:
    net = dds.load_model("fashion-mnist-cnn")
    kept: dict[str, torch.Tensor] = {}
    net[1].register_forward_hook(lambda module, inputs, out: kept.update(x=out))
    found = examined(net, data)
    assert found["threads"].message.endswith("a hook that is a function (1.<forward hook 0>).")


def test_batch_norm_with_loaded_statistics_and_no_counted_batch_is_fine(data: dds.Dataset) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
    net[1].running_mean.uniform_(0.0, 1.0)
    assert int(net[1].num_batches_tracked) == 0
    assert examined(net.eval(), data)["BatchNorm"].status == "ok"


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
