"""A selector among experts: the radii that counts promise, the loss by hand and by its gradient, whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm
from torch import nn

from ddsmoothing.errors import DataError, InputError, ModelError
from ddsmoothing.training import TrainConfig, load_predictions, make_predictions, resolve, train
from ddsmoothing.training import predictions as module
from ddsmoothing.training.keyed import Purpose, keys, normal
from ddsmoothing.training.objectives import consistency, gaussian
from ddsmoothing.training.predictions import beaten, predictions_for
from training_helpers import contents, same, toy_config, toy_data, toy_model

EXPERTS = (0.1, 0.4)
OPTIONS: dict[str, Any] = {"classes": 3, "sigma": EXPERTS, "n": 70, "seed": 4}
ONES = torch.ones(2)


@pytest.fixture(scope="module")
def radii(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("radii") / "radii"
    assert make_predictions(toy_model(), toy_data(), path, **OPTIONS)
    return path


# radii


def test_radii_are_those_that_the_pairwise_counts_of_each_expert_promise(radii: Path) -> None:
    """By hand for every input and expert: the fewest wins of the true class, Clopper-Pearson, sigma Phi^-1."""
    model, data = toy_model().eval(), toy_data()
    found = load_predictions(radii)
    assert found.votes.shape == (60, 2)
    assert found.source.sigma == EXPERTS
    ids = torch.arange(60)
    x, y = data[:60]
    blocks = [normal(keys(4, Purpose.PREDICTIONS, 0, block, ids), n, (1, 6, 6)) for block, n in ((0, 64), (1, 6))]
    noise, seen = torch.cat(blocks, dim=1), set()
    for e, sigma in enumerate(EXPERTS):
        with torch.no_grad():
            logits = model((x[:, None] + sigma * noise).flatten(0, 1)).reshape(60, 70, 3)
        for i in range(60):
            own = logits[i, :, y[i]]
            fewest = min(int((own > logits[i, :, b]).sum()) for b in range(3) if b != y[i])
            share = (fewest + 0.5) / 71
            radius = sigma * norm.ppf(beta.ppf(0.001, 10_000 * share, 10_000 * (1 - share) + 1))
            assert float(found.votes[i, e]) == pytest.approx(max(0.0, radius), abs=2e-3)
            seen.add(radius > 0)
    assert seen == {True, False}


def test_of_equal_logits_the_first_class_wins() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]]]).expand(3, -1, -1)
    expected = [
        [[False, True, True], [False, False, False]],
        [[False, False, True], [True, False, True]],
        [[False, False, False], [True, False, False]],
    ]
    assert beaten(logits, torch.tensor([0, 1, 2])).tolist() == expected


def test_radii_stopped_anywhere_come_out_the_same(radii: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 1024)  # sixteen inputs a block
    pieces = 1
    while not make_predictions(toy_model(), toy_data(), tmp_path / "r", **OPTIONS, stop=lambda: True):
        pieces += 1
    assert pieces == 4
    assert (tmp_path / "r").read_bytes() == radii.read_bytes()


def test_what_is_wrong_with_radii_is_said(radii: Path, tmp_path: Path) -> None:
    data = toy_data()
    assert predictions_for(str(radii), data, None).votes.shape == (60, 2)
    with pytest.raises(InputError, match="another kind, expected soft votes, made with --sigma"):
        predictions_for(str(radii), data, 3)
    make_predictions(toy_model(), data, tmp_path / "votes", **{**OPTIONS, "sigma": 0.2, "n": 2})
    with pytest.raises(InputError, match="another kind, expected radii of experts, made with --experts"):
        predictions_for(str(tmp_path / "votes"), data, None)
    with pytest.raises(InputError, match="made for another data set"):
        predictions_for(str(radii), toy_data(61), None)
    unlabelled = type(data)(name="toy", split="train", x=data.x, y=None)
    with pytest.raises(InputError, match="has no labels"):
        make_predictions(toy_model(), unlabelled, tmp_path / "a", **OPTIONS)
    with pytest.raises(InputError, match="sigma"):
        make_predictions(toy_model(), data, tmp_path / "b", **{**OPTIONS, "sigma": (0.1,)})
    with pytest.raises(InputError, match="label"):
        make_predictions(toy_model(), data, tmp_path / "c", **{**OPTIONS, "classes": 2})
    from safetensors.torch import save

    bad = load_predictions(radii).votes.clone()
    bad[3, 1] = -0.5
    text = load_predictions(radii).source.model_dump_json()
    (tmp_path / "d").write_bytes(save({"votes": bad}, {module.FIELD: text}))
    with pytest.raises(DataError, match="a radius in it is negative or no number"):
        load_predictions(tmp_path / "d")


# the loss


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(z) for z in row))
    return [z - total for z in row]


def by_hand(logits: list[list[list[float]]], labels: list[list[float]], weight: float) -> float:
    """The formula for logits [input][copy][expert] in plain Python."""
    total = 0.0
    for rows, target in zip(logits, labels, strict=True):
        each = [log_softmax(row) for row in rows]
        mean = [sum(math.exp(row[k]) for row in each) / len(each) for k in range(len(target))]
        for row in each:
            entropy = -sum(q * log_p for q, log_p in zip(target, row, strict=True))
            spread = sum(p * (math.log(p) - log_p) for p, log_p in zip(mean, row, strict=True))
            total += (entropy + weight * spread) / len(each)
    return total / len(logits)


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def test_the_loss_is_the_formula() -> None:
    logits, labels = case()
    x, y = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 1])
    for weight in (0.0, 1.0, 7.0):
        found = consistency(identity, x, y, logits, ONES, weight=weight, eta=0.0, targets=labels).value
        assert float(found) == pytest.approx(by_hand(logits.tolist(), labels.tolist(), weight), rel=1e-9)
    hard = nn.functional.one_hot(y, 2).double()
    plain = consistency(identity, x, y, logits, ONES, weight=3.0, eta=0.0)
    assert float(consistency(identity, x, y, logits, ONES, weight=3.0, eta=0.0, targets=hard).value) == pytest.approx(
        float(plain.value)
    )
    soft = consistency(identity, x, y, logits, ONES, weight=0.0, eta=0.0, targets=labels).value
    assert float(soft) == pytest.approx(float(gaussian(identity, x, y, logits, ONES, targets=labels).value))


def test_the_loss_has_the_gradient_of_its_value() -> None:
    noise, labels = case()

    def value(w: torch.Tensor) -> torch.Tensor:
        def model(z: torch.Tensor) -> torch.Tensor:
            return torch.tanh(z) @ w

        x = torch.full((2, 2), 0.3, dtype=torch.float64)
        return consistency(model, x, torch.zeros(2), noise, ONES, weight=2.0, eta=0.0, targets=labels).value

    w = torch.tensor([[0.3, -0.4], [1.1, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, w)


def test_another_number_of_experts_is_refused() -> None:
    logits, _ = case()
    labels = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    with pytest.raises(ModelError, match="the network gives 2 outputs for soft labels of 3"):
        consistency(identity, logits[:, 0] * 0, torch.zeros(2), logits, ONES, weight=1.0, eta=0.0, targets=labels)


# runs


def gate() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))


def config(radii: Path, **changes: Any) -> TrainConfig:
    return toy_config(objective="selector", copies=2, predictions=str(radii), **changes)


def crafted(path: Path) -> Path:
    """Radii by which images with a bright first third belong to the first expert, all others to the second."""
    make_predictions(toy_model(), toy_data(), path, **{**OPTIONS, "n": 2})
    from safetensors.torch import save

    source = load_predictions(path).source
    y = torch.from_numpy(toy_data().y)  # type: ignore[arg-type]
    votes = torch.where((y == 0)[:, None], torch.tensor([0.8, 0.2]), torch.tensor([0.1, 0.3])).half()
    path.write_bytes(save({"votes": votes}, {module.FIELD: source.model_dump_json()}))
    return path


def test_a_selector_learns_which_expert_has_the_larger_radius(tmp_path: Path) -> None:
    told = config(crafted(tmp_path / "radii"), epochs=8, lr=0.2, momentum=0.5)
    done = train(told, tmp_path / "run", model=gate(), data=toy_data(), device="cpu")
    assert done.metrics[-1]["accuracy"] > 0.9
    assert done.metrics[-1]["validation_accuracy"] > 0.6
    assert done.metrics[-1]["loss"] < done.metrics[0]["loss"]
    # with a high temperature labels are nearly even, and the least loss is nearly log 2
    even = train(
        config(tmp_path / "radii", selector={"temperature": 1e3}), tmp_path / "even", model=gate(), data=toy_data()
    )
    assert even.metrics[-1]["loss"] >= math.log(2) - 1e-3


def test_a_selector_stopped_anywhere_is_the_same(radii: Path, tmp_path: Path) -> None:
    def run(out: Path, stop: Callable[[], bool] | None = None) -> bool:
        torch.manual_seed(0)
        return train(config(radii), out, model=gate(), data=toy_data(), device="cpu", stop=stop).finished

    assert run(tmp_path / "whole")
    batches = iter(range(100))
    while not run(tmp_path / "parts", lambda: next(batches) % 3 == 2):
        pass
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


def test_options_that_do_not_fit_are_refused(radii: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a selector trains on predictions"):
        resolve(settings={"data": "toy", "model": "toy", "objective": "selector"})
    with pytest.raises(InputError, match="without data-dependent sigmas"):
        resolve(
            settings={"data": "toy", "model": "toy", "objective": "selector", "predictions": "f", "data_dependent": {}}
        )
    with pytest.raises(InputError, match="for the objectives catrs and selector, got gaussian"):
        resolve(settings={"data": "toy", "model": "toy", "predictions": "f"})
    with pytest.raises(InputError, match="holds radii of 2 experts, got num_classes 3; leave it out"):
        train(config(radii, num_classes=3), tmp_path / "a", data=toy_data(), device="cpu")


def test_the_commands_make_radii_and_a_selector_that_is_a_classifier_of_experts(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    from ddsmoothing.models import load_model, spec_of

    data = toy_data(40, (1, 28, 28))
    np.savez(tmp_path / "d.npz", x=np.asarray(data.x), y=data.y)  # type: ignore[arg-type]
    places = ["--data", tmp_path / "d.npz"]
    made = ["predictions", *places, "--model", "fashion-mnist-cnn", "--n", 4, "--out", tmp_path / "radii"]
    answer = cli(*made, "--experts", "0.2,0.5,1")
    assert answer.code == 0, answer.err
    told = ["train", "--preset", "fashion-mnist-selector", *places, "--predictions", tmp_path / "radii", "--warmup", 0]
    answer = cli(*told, "--epochs", 1, "--batch", 16, "--seed", 1, "--temperature", 0.2, "--out", tmp_path / "gate")
    assert answer.code == 0, answer.err
    assert "next: " not in answer.out  # its outputs are experts, whom no label of the data is of
    gate = load_model(str(tmp_path / "gate" / "model.safetensors"))
    spec = spec_of(gate)
    assert spec is not None
    assert len(spec.classes) == 3
    assert gate(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    for wrong in ([], ["--sigma", 0.2, "--experts", "0.2,0.5"]):
        answer = cli(*made[:-1], tmp_path / "none", *wrong)
        assert answer.code == 2 or answer.code == 1
        assert "expected one of --sigma" in answer.err
