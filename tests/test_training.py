from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

import ddsmoothing as dds
from ddsmoothing.errors import DataError, InputError, ModelError, RunError
from ddsmoothing.models import ModelSpec, save_model, spec_of
from ddsmoothing.sigma.files import load_sigmas, save_sigmas
from ddsmoothing.training import DataDependent, SmoothAdv, TrainConfig, make_predictions, resolve, train
from ddsmoothing.training import losses as losses_module
from ddsmoothing.training import trainer as trainer_module
from ddsmoothing.training.baselines import Own
from ddsmoothing.training.checkpoint import load_checkpoint, save_checkpoint
from ddsmoothing.training.distributed import World
from ddsmoothing.training.keyed import Purpose, keys, log_uniform, normal, seeded
from ddsmoothing.training.loop import BEST, CHECKPOINT, Loop
from ddsmoothing.training.options import setting
from ddsmoothing.training.sigma_table import SigmaTable
from ddsmoothing.training.validation import Validation
from training_helpers import (
    MODELS,
    MOVING,
    Denoised,
    Told,
    ToyDenoiser,
    contents,
    same,
    toy_config,
    toy_data,
    toy_model,
)

OBJECTIVES = ("gaussian", "smoothadv", "macer", "consistency", "catrs")
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def stop_after(batches: int) -> Callable[[], bool]:
    asked = iter(range(10**9))
    return lambda: next(asked) + 1 >= batches


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# random numbers


def test_noise_is_a_function_of_the_sample_alone() -> None:
    ids = torch.tensor([3, 50_000, 7, 2**40])
    whole = normal(keys(1, Purpose.NOISE, 4, 0, ids), 3, (5, 3))
    one = normal(keys(1, Purpose.NOISE, 4, 0, ids[2:3]), 1, (5, 3))
    assert torch.equal(whole[2, :1], one[0])
    for other in (
        keys(2, Purpose.NOISE, 4, 0, ids),
        keys(1, Purpose.ASCENT, 4, 0, ids),
        keys(1, Purpose.NOISE, 5, 0, ids),
    ):
        assert not torch.isclose(normal(other, 3, (5, 3)), whole).any()
    assert whole.shape == (4, 3, 5, 3)


def test_noise_is_standard_normal_and_independent_across_neighbours() -> None:
    # fixed seed; 4 tests, each at 1e-4
    noise = normal(keys(0, Purpose.NOISE, 0, 0, torch.arange(400)), 2, (301,)).double()
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    size = math.sqrt(400 * 301)
    for a, b in ((noise[:, 0], noise[:, 1]), (noise[1:, 0], noise[:-1, 0]), (noise[:, 0, 1:], noise[:, 0, :-1])):
        assert abs(float((a * b).sum())) / size < 3.9
    share = log_uniform(keys(0, Purpose.SIGMA, 0, 0, torch.arange(5000)), 0.1, 1.0).log10().double().numpy() + 1
    assert kstest(share, "uniform").pvalue > 1e-4


def test_no_two_samples_share_a_key() -> None:
    key = keys(3, Purpose.NOISE, 0, 0, torch.arange(200_000))
    assert len(key.unique()) == 200_000


def test_the_global_generator_is_put_back() -> None:
    torch.random.default_generator.manual_seed(4)
    expected = torch.rand(3)
    torch.random.default_generator.manual_seed(4)
    with seeded(torch.device("cpu"), 1, 2, 3):
        first = torch.rand(3)
    with seeded(torch.device("cpu"), 1, 2, 3):
        assert torch.equal(torch.rand(3), first)
    with seeded(torch.device("cpu"), 1, 2, 4):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)


# training


@pytest.mark.parametrize("kind", ["plain", "told"])
@pytest.mark.parametrize("moving", [False, True], ids=["sigma", "dds"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(objective: str, moving: bool, kind: str, tmp_path: Path) -> None:
    config = toy_config(
        sigma=0.2 if moving or kind == "plain" else (0.1, 0.4),
        catrs={"confidence": "own", "steps": 2},
        consistency={"weight": 2.0},
        objective=objective,
        copies=2,
        epochs=4,
        lr=0.1,
        data_dependent=MOVING if moving else None,
        channels_last=moving,
        smoothadv=SmoothAdv(epsilon=0.05),
    )
    done = train(config, tmp_path / "run", model=MODELS[kind](), data=toy_data(), device="cpu")
    assert done.finished
    assert done.metrics[-1]["accuracy"] > 0.8
    assert done.metrics[-1]["validation_accuracy"] > 0.6
    # what CAT-RS asks grows with what the network can do
    assert done.metrics[-1]["loss"] < done.metrics[0]["loss"] or objective == "catrs"
    assert (len(set(done.sigma.tolist())) > 1) == (moving or kind == "told")
    assert not done.model.training


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "gaussian", "schedule": "cosine", "warmup": 0.5, "nesterov": True, "augmentation": "cifar10"},
        {"objective": "smoothadv", "data_dependent": MOVING | {"switch_epoch": 1}, "copies": 2},
        {"objective": "macer", "data_dependent": MOVING | {"steps_test": 1}, "copies": 3, "keep": "best"},
        {"objective": "gaussian", "sigma": (0.1, 0.4), "precision": "bf16"},
        {"objective": "gaussian", "data_dependent": MOVING, "precision": "bf16"},
        {"objective": "consistency", "copies": 2, "optimizer": "adamw", "recompute_batchnorm": True},
        {"objective": "catrs", "copies": 3, "catrs": {"confidence": "own", "decay": 0.5}, "data_dependent": MOVING},
        {"kind": "told", "objective": "catrs", "copies": 3, "sigma": (0.1, 0.4), "teacher": "toy"},
        {"kind": "told", "objective": "gaussian", "sigma": (0.1, 0.4), "recompute_batchnorm": True},
        {"kind": "denoised", "freeze": "denoiser", "sigma": (0.1, 0.4), "recompute_batchnorm": True},
        {"kind": "denoised", "freeze": "classifier", "soft_targets": True, "optimizer": "adamw"},
        {"kind": "denoiser", "objective": "denoiser", "sigma": (0.1, 0.4), "optimizer": "adamw", "keep": "best"},
    ],
    ids=[
        *("gaussian", "smoothadv", "macer", "range", "half precision", "consistency", "catrs", "catrs told"),
        *("told", "classifier", "soft targets", "denoiser"),
    ],
)
def test_a_run_stopped_anywhere_gives_what_an_uninterrupted_one_gives(options: dict[str, Any], tmp_path: Path) -> None:
    options = dict(options)
    kind = options.pop("kind", "plain")

    def run(out: Path, stop: Callable[[], bool] | None = None) -> trainer_module.Trained:
        model = ToyDenoiser() if kind == "denoiser" else MODELS[kind](dropout=0.3)
        how = {"data": toy_data(), "teacher": Told(seed=1), "device": "cpu", "stop": stop}
        return train(toy_config(**options), out, model=model, **how)

    whole = run(tmp_path / "whole")
    pieces, parts = 0, None
    while parts is None or not parts.finished:
        parts = run(tmp_path / "parts", stop_after(3))
        pieces += 1
    assert pieces >= 4
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    for a, b in zip(whole.metrics, parts.metrics, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert torch.equal(whole.sigma, parts.sigma)
    again = run(tmp_path / "whole")
    assert again.metrics == whole.metrics


def test_a_stop_saves_the_place_in_the_epoch(tmp_path: Path) -> None:
    seen: list[int] = []
    done = train(
        toy_config(),
        tmp_path / "run",
        model=toy_model(),
        data=toy_data(),
        device="cpu",
        progress=seen.append,
        stop=stop_after(3),
    )
    assert not done.finished
    assert seen == [8, 8, 8]
    position = load_checkpoint(tmp_path / "run" / CHECKPOINT).position
    assert (position.epoch, position.step) == (0, 3)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "lock").exists()


def test_another_run_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(toy_config(), out, model=toy_model(), data=toy_data(), device="cpu")
    before = files(out)
    for change, named in (
        ({"lr": 0.07}, "lr was 0.05, now 0.07"),
        ({"sigma": 0.3}, "sigma was"),
        ({"seed": 12}, "seed was"),
    ):
        with pytest.raises(RunError, match=named):
            train(toy_config(**change), out, model=toy_model(), data=toy_data(), device="cpu")
    with pytest.raises(RunError, match="data set was"):
        train(toy_config(), out, model=toy_model(), data=toy_data(59), device="cpu")
    with pytest.raises(RunError, match="another model"):
        train(toy_config(), out, model=toy_model(norm=False), data=toy_data(), device="cpu")
    assert files(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="holds no checkpoint"):
        train(toy_config(), tmp_path / "other", model=toy_model(), data=toy_data(), device="cpu")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        train(toy_config(), tmp_path / "file", model=toy_model(), data=toy_data(), device="cpu")


def test_an_option_that_did_not_exist_then_has_its_default(tmp_path: Path) -> None:
    config, data = toy_config(epochs=2), toy_data()
    options: dict[str, Any] = {"data": data, "device": "cpu"}
    whole = train(config, tmp_path / "whole", model=toy_model(), **options)
    train(config, tmp_path / "run", model=toy_model(), stop=stop_after(3), **options)
    path = tmp_path / "run" / CHECKPOINT
    before = load_checkpoint(path)
    older = {key: value for key, value in before.position.config.items() if key != "selector"}
    assert older != before.position.config
    save_checkpoint(dataclasses.replace(before, position=before.position.model_copy(update={"config": older})), path)
    again = train(config, tmp_path / "run", model=toy_model(), **options)
    assert again.finished
    assert same(whole.model.state_dict(), again.model.state_dict())
    changed = {**older, "lr": 3.0}
    save_checkpoint(dataclasses.replace(before, position=before.position.model_copy(update={"config": changed})), path)
    with pytest.raises(RunError, match=r"lr was 3\.0"):
        train(config, tmp_path / "run", model=toy_model(), **options)


def test_a_seed_left_out_is_drawn_recorded_and_taken_up_again(tmp_path: Path) -> None:
    first = train(
        toy_config(seed=None), tmp_path / "run", model=toy_model(), data=toy_data(), device="cpu", stop=stop_after(2)
    )
    second = train(toy_config(seed=None), tmp_path / "run", model=toy_model(), data=toy_data(), device="cpu")
    assert first.config.seed is not None
    assert second.config.seed == first.config.seed
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == first.config.seed


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.passes = toy_model(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += self.training
            logits: torch.Tensor = self.inner(x)
            return logits * (math.nan if self.passes > 10 else 1.0)

    with pytest.raises(ModelError, match="no number any more in epoch 1"):
        train(toy_config(), tmp_path / "run", model=Breaks(), data=toy_data(), device="cpu")
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert (state.position.epoch, state.position.step) == (1, 0)
    assert all(bool(torch.isfinite(value).all()) for value in state.model.values())


# sigma


def test_sigma_moves_from_the_switch_on_stays_in_its_bounds_and_held_out_samples_stay(tmp_path: Path) -> None:
    options = {"steps": 3, "step": 0.5, "sigma_min": 0.15, "sigma_max": 0.25, "switch_epoch": 1, "sigma0_test": 0.22}
    config = toy_config(data_dependent=options)
    run = {"data": toy_data(), "device": "cpu"}
    done = train(config, tmp_path / "one", model=toy_model(), stop=stop_after(7), **run)  # the first epoch
    loop = Loop(config, 11, toy_model(), toy_data(), ALONE)
    assert set(loop.batches.training.tolist()) | set(loop.batches.held_out.tolist()) == set(range(60))
    assert not set(loop.batches.training.tolist()) & set(loop.batches.held_out.tolist())
    assert set(done.sigma[loop.batches.training].tolist()) == {float(torch.tensor(0.2))}
    done = train(config, tmp_path / "two", model=toy_model(), **run)
    moved = done.sigma[loop.batches.training]
    assert float(moved.min()) == pytest.approx(0.15)
    assert float(moved.max()) == pytest.approx(0.25)
    assert set(done.sigma[loop.batches.held_out].tolist()) == {float(torch.tensor(0.22))}
    config = toy_config(data_dependent=options | {"steps_test": 1})
    done = train(config, tmp_path / "three", model=toy_model(), **run)
    assert len(set(done.sigma[loop.batches.held_out].tolist())) > 1


class Watched(nn.Module):
    """Remembers the mode and the inputs of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy_model()
        self.seen: list[tuple[bool, torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, x.detach().clone()))
        logits: torch.Tensor = self.inner(x)
        return logits


def test_the_ascent_runs_in_eval_mode_and_leaves_the_model_as_it_was() -> None:
    model = Watched().train()
    model.inner[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, ids = toy_data()[:6][0], torch.arange(6)
    table = SigmaTable(torch.full((60,), 0.2), 0.1, 0.4)
    table.move(model, x, ids, DataDependent(step=0.1), 3, (1, Purpose.ASCENT, 0))
    assert [training for training, _ in model.seen] == [False] * 3
    assert same(before, model.state_dict())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.inner.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in model.parameters())
    assert bool((table.values[:6] != 0.2).all())
    assert bool((table.values[6:] == 0.2).all())


def test_copies_in_the_ascent_have_their_own_images_sigma_and_noise() -> None:
    model, ids, copies = Watched(), torch.tensor([5, 9, 2]), 400
    values = torch.full((10,), 0.2)
    values[ids] = torch.tensor([0.1, 0.4, 0.9])
    table = SigmaTable(values, 0.05, 2.0)
    table.move(model, torch.zeros(3, 1, 6, 6), ids, DataDependent(samples=copies), 1, (1, Purpose.ASCENT, 0))
    noise = model.seen[0][1].reshape(3, copies, -1)
    assert noise.std((1, 2)).tolist() == pytest.approx([0.1, 0.4, 0.9], rel=0.03)
    alone = Watched()
    table = SigmaTable(values, 0.05, 2.0)
    table.move(alone, torch.zeros(1, 1, 6, 6), ids[1:2], DataDependent(samples=copies), 1, (1, Purpose.ASCENT, 0))
    assert torch.equal(alone.seen[0][1], model.seen[0][1][copies : 2 * copies])


@pytest.mark.parametrize("objective", ["gaussian", "macer", "consistency", "catrs"])
def test_each_image_of_a_batch_is_trained_with_its_own_sigma(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataclasses.replace(toy_data(), x=np.zeros((60, 1, 6, 6), np.uint8))
    model = Watched()
    monkeypatch.setattr(losses_module, "binomial", lambda key, m, share: torch.full((20,), m))
    own = Own(60, 3, 0.5, torch.device("cpu"))
    config = toy_config(copies=50, batch=20, validation=0.0, objective=objective, catrs={"confidence": "own"})
    loop = Loop(config, 11, model, data, ALONE, baseline=own)
    loop.table.values = torch.linspace(0.05, 1.0, 60)
    loop.model.train()
    batch = next(loop.batches.of_epoch(0, 0))
    assert batch.ids.tolist() != sorted(batch.ids.tolist())
    expected = loop.table.values[batch.ids].tolist()
    loop.train_batch(batch)
    for _, seen in model.seen:  # also in the steps of an attack, and on what it found
        assert seen.reshape(-1, 50, 36).std((1, 2)).tolist() == pytest.approx(expected, rel=0.1)
    assert len(model.seen) == {"catrs": 1 + 4 + 1}.get(objective, 1)


def test_a_range_draws_a_sigma_for_each_sample_and_epoch(tmp_path: Path) -> None:
    one = train(
        toy_config(sigma=(0.1, 0.4), epochs=1), tmp_path / "a", model=toy_model(), data=toy_data(), device="cpu"
    )
    two = train(
        toy_config(sigma=(0.1, 0.4), epochs=2), tmp_path / "b", model=toy_model(), data=toy_data(), device="cpu"
    )
    assert len(set(one.sigma.tolist())) == 60
    assert not bool((one.sigma == two.sigma).any())
    assert float(one.sigma.min()) >= 0.1
    assert float(one.sigma.max()) <= 0.4


def test_the_saved_sigmas_and_the_saved_model_are_of_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.9, 0.3, 0.9])
    names = ("validation_loss", "validation_accuracy", "validation_clean_accuracy")

    def validate(*_: Any) -> tuple[dict[str, float], float]:
        score = next(scores)
        return dict(zip(names, (1.0, score, 0.5), strict=True)), score

    monkeypatch.setattr(Validation, "of", validate)
    config = toy_config(keep="best", epochs=4, data_dependent=MOVING)
    done = train(config, tmp_path / "run", model=toy_model(), data=toy_data(), device="cpu")
    best, last = load_checkpoint(tmp_path / "run" / BEST), load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert best.position.epoch == 2
    assert same(best.model, done.model.state_dict())
    assert torch.equal(best.sigma, done.sigma)
    assert not torch.equal(last.sigma, best.sigma)
    assert not same(last.model, best.model)
    saved = load_sigmas(tmp_path / "run" / "sigmas-train.json")
    assert saved.of(list(range(60))).tolist() == done.sigma.double().tolist()


# schedules and the attack's warm-up


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [0.05] * 4),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.1}, [0.05, 0.05, 0.005, 0.005]),
        ({"schedule": "cosine"}, [0.05 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
        ({"schedule": "constant", "warmup": 2.0}, [0.05 / 14, 0.025 + 0.05 / 14, 0.05, 0.05]),
    ],
)
def test_learning_rates_at_the_start_of_each_epoch(options: dict[str, Any], rates: list[float]) -> None:
    loop = Loop(toy_config(epochs=4, **options), 11, toy_model(), toy_data(), ALONE)
    assert loop.batches.number == 7
    found = []
    for loop.epoch in range(4):
        found.append(loop.lr())
    assert found == pytest.approx(rates)


def test_epsilon_grows_over_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = losses_module.smoothadv

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["epsilon"])
        return real(*args, **options)

    monkeypatch.setattr(losses_module, "smoothadv", spy)
    config = toy_config(objective="smoothadv", smoothadv=SmoothAdv(epsilon=0.3, warmup=3), epochs=4, batch=60)
    train(config, tmp_path / "run", model=toy_model(), data=toy_data(), device="cpu")
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3])


# what is written


def test_the_model_file_is_read_by_load_model_and_says_its_sigmas(tmp_path: Path) -> None:
    data = toy_data(40, (1, 28, 28))
    run = {"data": data, "device": "cpu"}
    plain = train(toy_config(model="small-cnn", epochs=1), tmp_path / "a", **run)
    model = dds.load_model(str(tmp_path / "a" / "model.safetensors"))
    assert spec_of(model).training_sigmas == (0.2,)  # type: ignore[union-attr]
    assert same(model.state_dict(), plain.model.state_dict())
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=3)
    assert smoothed.certify(data[:2][0], 0.2, n0=10, n=100, seed=0).radius.shape == (2,)
    moved = train(toy_config(model="small-cnn", epochs=1, data_dependent=MOVING), tmp_path / "b", **run)
    spec = spec_of(dds.load_model(str(tmp_path / "b" / "model.safetensors")))
    assert spec is not None
    low, high = spec.training_sigmas
    assert float(moved.sigma.min()) <= low < high <= float(moved.sigma.max()) * 1.001
    file = load_sigmas(tmp_path / "b" / "sigmas-train.json")
    model = dds.load_model(str(tmp_path / "b" / "model.safetensors"))
    file.check(data.fingerprint(), dds.models.model_identity(model), "l2")  # type: ignore[attr-defined]
    ranged = train(toy_config(model="small-cnn", epochs=1, sigma=(0.1, 0.4)), tmp_path / "c", **run)
    assert spec_of(ranged.model).training_sigmas == (0.1, 0.4)  # type: ignore[union-attr]


def test_weights_at_the_start_depend_on_the_seed_alone(tmp_path: Path) -> None:
    from ddsmoothing.training.init import new_model

    config = toy_config(model="small-cnn")
    first, second, other = (new_model(config, seed, 3, (1, 28, 28))[0].state_dict() for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)


def test_the_test_split_is_never_read_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str, *, split: str) -> dds.Dataset:
        asked.append(split)
        return toy_data(split=split)

    monkeypatch.setattr(trainer_module, "load_data", load)
    train(toy_config(data_dependent=MOVING), tmp_path / "a", model=toy_model(), device="cpu")
    assert asked == ["train"]
    train(toy_config(data_dependent=MOVING | {"steps_after": 1}), tmp_path / "b", model=toy_model(), device="cpu")
    assert asked == ["train", "train", "test"]


@pytest.mark.parametrize("kind", ["plain", "told"])
def test_the_sweep_moves_test_sigmas_pass_by_pass_without_labels_and_goes_on_where_it_stopped(
    kind: str, tmp_path: Path
) -> None:
    config = toy_config(data_dependent=MOVING | {"steps_after": 3, "sigma0_test": 0.3})
    test = dataclasses.replace(toy_data(20, split="test"), y=None)

    def run(out: Path, stop: Callable[[], bool] | None = None) -> trainer_module.Trained:
        return train(config, out, model=MODELS[kind](), data=toy_data(), test=test, device="cpu", stop=stop)

    whole = run(tmp_path / "whole")
    assert whole.finished
    file = load_sigmas(tmp_path / "whole" / "sigmas-test.json")
    assert file.options["passes"] == 3
    assert len(file.sigma) == 20
    assert all(value != 0.3 for value in file.sigma.values())
    parts = run(tmp_path / "parts", stop_after(14 + 5))  # 14 batches of training, 3 a pass
    assert not parts.finished
    assert load_sigmas(tmp_path / "parts" / "sigmas-test.json").options["passes"] == 1
    assert run(tmp_path / "parts").finished
    assert load_sigmas(tmp_path / "parts" / "sigmas-test.json") == file
    (tmp_path / "parts" / "sigmas-test.json").write_text(file.model_copy(update={"options": {}}).model_dump_json())
    with pytest.raises(InputError, match="not the file of a sweep"):
        run(tmp_path / "parts")


# where a run starts


def started(config: TrainConfig, data: dds.Dataset) -> Loop:
    """A new run at its first batch."""
    model, state = trainer_module.model_to_train(config, 11, data, None, None)
    loop = Loop(config, 11, model, data, ALONE)
    trainer_module.start(loop, None, state)
    return loop


def test_a_run_starts_from_a_checkpoint_with_or_without_its_optimizer(tmp_path: Path) -> None:
    data = toy_data(40, (1, 28, 28))
    first = train(toy_config(model="small-cnn"), tmp_path / "first", data=data, device="cpu")
    start = str(tmp_path / "first" / CHECKPOINT)
    state = load_checkpoint(tmp_path / "first" / CHECKPOINT)
    config = toy_config(model="small-cnn", init=start, lr=1e-12, epochs=1, weight_decay=0.0)
    seconds = {}
    for kept in (False, True):
        given = config.model_copy(update={"init_optimizer": kept})
        loop = started(given, data)
        assert same(loop.model.state_dict(), state.model)
        seconds[kept] = loop.state(torch.zeros(3)).optimizer
    assert seconds[False] == {}
    assert same(seconds[True], state.optimizer)
    names = [f"momentum_buffer.{name}" for name, _ in first.model.named_parameters()]
    buffers = [{"momentum_buffer": state.optimizer[name]} for name in names]
    entries = {"state": dict(enumerate(buffers))}
    torch.save(
        {"state_dict": first.model.state_dict(), "arch": "small-cnn", "optimizer": entries}, tmp_path / "old.pth.tar"
    )
    foreign = config.model_copy(update={"init": str(tmp_path / "old.pth.tar"), "init_optimizer": True})
    loop = started(foreign, data)
    assert same(loop.model.state_dict(), first.model.state_dict())
    assert same(loop.state(torch.zeros(3)).optimizer, state.optimizer)
    wrong = {"state_dict": first.model.state_dict(), "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(1)}}}}
    torch.save(wrong, tmp_path / "old.pth.tar")
    with pytest.raises(DataError, match="other parameters"):
        started(foreign, data)
    torch.save({"state_dict": first.model.state_dict()}, tmp_path / "old.pth.tar")
    with pytest.raises(DataError, match="no state of an SGD"):
        started(foreign, data)
    with pytest.raises(DataError, match="another model"):
        started(toy_config(model="cifar-resnet20", init=start), toy_data(9, (3, 8, 8)))


@pytest.mark.parametrize("condition", ["channel", "film"])
@pytest.mark.parametrize("kind", ["checkpoint", "file", "conditional"])
def test_a_network_that_is_told_sigma_starts_from_one_that_is_not(condition: str, kind: str, tmp_path: Path) -> None:
    data = toy_data(40, (1, 28, 28))
    asked: dict[str, Any] = {"model": "small-cnn", "epochs": 1}
    told = {**asked, "condition": condition, "sigma": (0.1, 0.4)}
    first = train(toy_config(**(told if kind == "conditional" else asked)), tmp_path / "a", data=data, device="cpu")
    start = tmp_path / "a" / (CHECKPOINT if kind == "checkpoint" else "model.safetensors")
    loop = started(toy_config(**told, init=str(start)), data)
    spec = spec_of(loop.model)
    assert spec is not None
    assert spec.condition == condition
    assert loop.model.training
    x, sigma = data[:5][0], torch.full((5,), 0.3)
    if kind == "conditional":
        assert torch.equal(loop.model.eval()(x, sigma), first.model(x, sigma))
        with pytest.raises(InputError, match=f"condition {condition}, got None"):
            started(toy_config(**asked, init=str(start)), data)
    else:
        layer = first.model[0]  # type: ignore[index]
        same_input = (x - layer.mean) / (layer.std**2 + 0.09).sqrt() * layer.std + layer.mean
        assert torch.allclose(loop.model.eval()(x, sigma), first.model(same_input), atol=1e-5)
    with pytest.raises(InputError, match="which is code"):
        started(toy_config(model="training_helpers:toy_model", condition="film", sigma=(0.1, 0.4)), toy_data())


def test_a_model_file_is_a_start_too(tmp_path: Path) -> None:
    spec = ModelSpec(arch="small-cnn", classes=("a", "b", "c"), mean=(0.5,), std=(0.2,), training_sigmas=(0.1,))
    save_model(spec.build(), spec, tmp_path / "m.safetensors")
    config = toy_config(model="small-cnn", init=str(tmp_path / "m.safetensors"), epochs=1)
    named = dataclasses.replace(toy_data(20, (1, 28, 28)), classes=("left", "middle", "right"))
    done = train(config, tmp_path / "run", data=named, device="cpu")
    assert float(done.model.state_dict()["0.mean"]) == 0.5
    saved = spec_of(dds.load_model(str(tmp_path / "run" / "model.safetensors")))
    assert saved is not None and saved.classes == named.classes  # of the data, where they say them
    assert spec_of(done.model).training_sigmas == (0.2,)  # type: ignore[union-attr]


def test_sigmas_start_from_a_file_of_this_data_set(tmp_path: Path) -> None:
    data = toy_data()
    run = {"data": data, "device": "cpu"}
    train(toy_config(data_dependent=MOVING), tmp_path / "a", model=toy_model(), **run)
    path = tmp_path / "a" / "sigmas-train.json"
    file = load_sigmas(path)
    config = toy_config(data_dependent=MOVING | {"steps": 0}, sigma_init=str(path))
    done = train(config, tmp_path / "b", model=toy_model(), **run)
    assert done.sigma.double().tolist() == file.of(list(range(60))).tolist()
    for change, named in (
        ({"norm": "l1"}, "for l1"),
        ({"data": file.data | {"name": "other"}}, "made for the data set"),
        ({"sigma": {**file.sigma, 60: 0.2}}, "names sample 60"),
    ):
        save_sigmas(file.model_copy(update=change), tmp_path / "wrong.json")
        with pytest.raises(InputError, match=named):
            train(
                config.model_copy(update={"sigma_init": str(tmp_path / "wrong.json")}),
                tmp_path / "c",
                model=toy_model(),
                **run,
            )
    assert not (tmp_path / "c").exists()


def test_labels_have_to_fit(tmp_path: Path) -> None:
    data = toy_data()
    with pytest.raises(InputError, match="label 2 in the training data"):
        train(toy_config(num_classes=2), tmp_path / "x", model=toy_model(), data=data, device="cpu")
    with pytest.raises(InputError, match="needs labels"):
        train(toy_config(), tmp_path / "x", model=toy_model(), data=dataclasses.replace(data, y=None), device="cpu")
    with pytest.raises(DataError, match="none is left"):
        train(toy_config(validation=0.995), tmp_path / "x", model=toy_model(), data=data, device="cpu")
    assert not (tmp_path / "x").exists()


# parts


@pytest.mark.parametrize("part", ["denoiser", "classifier"])
def test_a_frozen_part_stays_as_it_is_in_eval_mode_and_is_given_back(part: str, tmp_path: Path) -> None:
    model = Denoised()
    modes: dict[str, set[bool]] = {"denoiser": set(), "classifier": set()}
    for name, seen in modes.items():
        getattr(model, name).register_forward_hook(lambda module, *_, seen=seen: seen.add(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = toy_config(freeze=part, sigma=(0.1, 0.4), epochs=1, soft_targets=part == "classifier", validation=0.0)
    train(config, tmp_path / "run", model=model, data=toy_data(), device="cpu")
    other = "classifier" if part == "denoiser" else "denoiser"
    for name, value in model.state_dict().items():
        fixed = name.startswith(part)
        assert torch.equal(value, before[name]) == (fixed or value.numel() == 0), name
    assert modes == {part: {False}, other: {True}}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(
        name.partition(".")[2].startswith(other) for name in load_checkpoint(tmp_path / "run" / CHECKPOINT).optimizer
    )


def test_soft_targets_are_what_the_frozen_classifier_says_of_the_clean_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = Denoised(), []
    real = losses_module.gaussian

    def spy(*args: Any, **options: Any) -> Any:
        seen.append((args[1], options["targets"]))
        return real(*args, **options)

    monkeypatch.setattr(losses_module, "gaussian", spy)
    config = toy_config(freeze="classifier", soft_targets=True, batch=20)
    train(config, tmp_path / "run", model=model, data=toy_data(), device="cpu", stop=stop_after(2))
    x, targets = seen[1]
    assert torch.allclose(targets, model.classifier.eval()(x).softmax(1), atol=1e-6)

    class Brighter(Denoised):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(2 * self.denoiser(x, sigma) - 1)  # what it does between stays
            return logits

    seen.clear()
    model = Brighter()
    train(config, tmp_path / "other", model=model, data=toy_data(), device="cpu", stop=stop_after(2))
    x, targets = seen[1]
    assert torch.allclose(targets, model.classifier.eval()(2 * x - 1).softmax(1), atol=1e-6)


def test_the_parts_that_were_trained_get_a_file_of_their_own(tmp_path: Path) -> None:
    model = Denoised()
    spec = ModelSpec(arch="small-cnn", classes=("a", "b", "c"), mean=(0.5,), std=(0.2,), input_shape=(1, 6, 6))
    model.classifier = spec.build()
    config = toy_config(freeze="denoiser", sigma=(0.1, 0.4), epochs=1)
    train(config, tmp_path / "run", model=model, data=toy_data(), device="cpu")
    wrapped = nn.Module()
    wrapped.network = model.classifier  # as denoisers keep theirs
    loop = Loop(config, 11, model, toy_data(), ALONE)
    trainer_module.save_part(loop, wrapped, tmp_path / "network.safetensors")
    assert same(dds.load_model(str(tmp_path / "network.safetensors")).state_dict(), model.classifier.state_dict())
    again = dds.load_model(str(tmp_path / "run" / "classifier.safetensors"))
    assert same(again.state_dict(), model.classifier.state_dict())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(InputError, match="--freeze denoiser needs a model with the parts"):
        train(config, tmp_path / "other", model=toy_model(), data=toy_data(), device="cpu")


def test_batchnorm_statistics_are_the_plain_mean_over_the_batches(tmp_path: Path) -> None:
    data = toy_data()
    config = toy_config(recompute_batchnorm=True, sigma=(0.1, 0.4), epochs=1, batch=8)
    model = Told()
    train(config, tmp_path / "run", model=model, data=data, device="cpu")
    loop = Loop(config, 11, Told(), data, ALONE)
    means, variances = [], []
    sigma = log_uniform(keys(11, Purpose.SIGMA, 0, 0, torch.arange(60)), 0.1, 0.4)
    for batch in loop.batches.of_epoch(0, 0):
        noise = normal(keys(11, Purpose.BATCHNORM, 0, 0, batch.ids), 1, (1, 6, 6))[:, 0]
        own = sigma[batch.ids].reshape(-1, 1, 1, 1)
        out = model.net[0]((batch.x + own * noise - 0.4) / (0.09 + own**2).sqrt())  # type: ignore[index]
        means.append(out.mean((0, 2, 3)))
        variances.append(out.var((0, 2, 3)))
    norm = model.net[1]  # type: ignore[index]
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack(variances).mean(0), atol=1e-5)
    assert norm.momentum == 0.1
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT).model
    assert same(state, model.state_dict())  # what a repeated command starts from


# denoisers


def test_a_denoiser_learns_and_says_its_psnr(tmp_path: Path) -> None:
    config = toy_config(
        objective="denoiser", model="small-unet", sigma=(0.1, 0.8), epochs=3, optimizer="adamw", lr=0.003, momentum=0.9
    )
    data = dataclasses.replace(toy_data(60, (1, 12, 12)), y=None)
    done = train(config, tmp_path / "run", data=data, device="cpu")
    first, last = done.metrics[0], done.metrics[-1]
    names = [key for key in last if key.startswith("validation_psnr")]
    assert names == [f"validation_psnr_{s:.3g}" for s in np.geomspace(0.1, 0.8, 5)]
    assert last["loss"] < first["loss"]
    assert sum(last[name] for name in names) > sum(first[name] for name in names)
    assert last["accuracy"] is None
    again = dds.load_model(str(tmp_path / "run" / "model.safetensors"))
    spec = spec_of(again)
    assert spec is not None
    assert spec.sigma_range == (0.1, 0.8)
    assert again(data[:2][0], torch.tensor([0.2, 0.5])).shape == (2, 1, 12, 12)
    loop = Loop(config, 11, again, data, ALONE)
    error = []
    for batch in loop.batches.to_validate():
        noise = normal(keys(11, Purpose.VALIDATION, 2**32, 0, batch.ids), 1, (1, 12, 12))[:, 0]
        error.append((again(batch.x + 0.8 * noise, torch.full((6,), 0.8)) - batch.x).square().mean())
    assert last[names[-1]] == pytest.approx(-10 * math.log10(float(torch.stack(error).mean().detach())), abs=1e-3)
    for change in ({"objective": "gaussian"}, {"model": "small-cnn"}):
        with pytest.raises(InputError, match="does not train"):
            train(config.model_copy(update=change), tmp_path / "x", data=toy_data(60, (1, 12, 12)), device="cpu")


# AdamW and predictions


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    data = toy_data(40, (1, 28, 28))
    config = toy_config(model="small-cnn", epochs=1, optimizer="adamw", lr=0.001)
    train(config, tmp_path / "a", data=data, device="cpu")
    state = load_checkpoint(tmp_path / "a" / CHECKPOINT).optimizer
    assert {name.partition(".")[0] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    start = {"init": str(tmp_path / "a" / CHECKPOINT), "init_optimizer": True}
    loop = started(config.model_copy(update=start), data)
    assert same(loop.state(torch.zeros(3)).optimizer, state)
    with pytest.raises(RunError, match="is not one of sgd"):
        started(config.model_copy(update={**start, "optimizer": "sgd"}), data)


def test_predictions_are_refused_for_another_data_set(tmp_path: Path) -> None:
    data = toy_data()
    make_predictions(toy_model().eval(), data, tmp_path / "p", classes=3, sigma=0.2, n=4, seed=0)
    config = toy_config(objective="catrs", copies=2, epochs=1, predictions=str(tmp_path / "p"))
    done = train(config, tmp_path / "a", model=toy_model(), data=data, device="cpu")
    assert done.finished
    with pytest.raises(InputError, match="another data set"):
        train(config, tmp_path / "b", model=toy_model(), data=toy_data(59), device="cpu")
    with pytest.raises(InputError, match="another number of classes: 3, not 4"):
        train(config.model_copy(update={"num_classes": 4}), tmp_path / "b", model=toy_model(), data=data, device="cpu")
    assert not (tmp_path / "b").exists()


def test_the_range_of_a_network_that_is_told_sigma_is_in_its_file(tmp_path: Path) -> None:
    data = toy_data(40, (1, 28, 28))
    ranged = toy_config(model="small-cnn", condition="film", sigma=(0.1, 0.4), epochs=1)
    spec = spec_of(train(ranged, tmp_path / "a", data=data, device="cpu").model)
    assert spec is not None
    assert (spec.sigma_range, spec.training_sigmas) == ((0.1, 0.4), (0.1, 0.4))
    moving = toy_config(model="small-cnn", condition="channel", data_dependent=MOVING, epochs=1)
    done = train(moving, tmp_path / "b", data=data, device="cpu")
    spec = spec_of(dds.load_model(str(tmp_path / "b" / "model.safetensors")))
    assert spec is not None
    assert spec.sigma_range is not None
    assert spec.sigma_range == pytest.approx((float(done.sigma.min()), float(done.sigma.max())), rel=1e-3)


# TensorBoard


def test_tensorboard_gets_losses_accuracies_sigmas_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    train(toy_config(data_dependent=MOVING), tmp_path / "run", model=toy_model(), data=toy_data(), tensorboard=True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
    tags = events.Tags()
    assert {"loss", "accuracy", "validation/accuracy", "sigma/mean", "sigma/min", "sigma/max"} <= set(tags["scalars"])
    assert tags["histograms"] == ["sigma/histogram"]
    assert tags["images"]
    assert [e.step for e in events.Scalars("loss")] == [0, 1]


# options


def test_options_come_from_a_preset_a_file_and_settings_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("epochs = 5\nlr = 0.5\n[macer]\nbeta = 3.0\n")
    config = resolve(preset="cifar10-macer-dds", file=tmp_path / "c.toml", settings={"lr": 0.25, "macer.gamma": 2.0})
    assert (config.epochs, config.lr, config.macer.beta, config.macer.gamma, config.macer.weight) == (
        5,
        0.25,
        3.0,
        2.0,
        12.0,
    )
    assert config.data_dependent is not None
    assert (config.copies, config.data_dependent.steps, config.data_dependent.samples) == (64, 10, 64)
    plain = resolve(preset="cifar10-macer")
    assert (plain.copies, plain.data_dependent) == (16, None)
    assert isinstance(TrainConfig.model_validate_json(config.model_dump_json()), TrainConfig)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"macer.gama": 3}, "Did you mean 'macer.gamma'"),
        ({"data_dependent.step_": 1}, "data_dependent.step"),
        ({"sigma": -1.0}, "option sigma"),
        ({"sigma": [0.5, 0.1]}, "low < high"),
        ({"sigma": [0.1, 0.5], "data_dependent.steps": 1}, "sigma is a range"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"data_dependent.switch_epoch": 90}, "earlier switch_epoch"),
        ({"keep": "best", "validation": 0.0}, "held-out"),
        ({"init_optimizer": True}, "needs init"),
        ({"data_dependent.sigma_min": 0.3, "data_dependent.sigma_max": 0.5}, "outside its bounds"),
        ({"data_dependent.sigma0_test": 5.0}, "outside its bounds"),
        ({"objective": "x" * 300}, "objective"),
        ({"macer": 3}, "macer"),
        ({"condition": "film"}, "expected a range"),
        ({"condition": "films", "sigma": [0.1, 0.5]}, "option condition"),
        ({"nesterov": True, "optimizer": "adamw"}, "the optimizer sgd"),
        ({"keep": "best", "recompute_batchnorm": True}, "keep 'last'"),
        ({"objective": "catrs"}, "got no predictions"),
        ({"objective": "catrs", "predictions": "a", "teacher": "b"}, "predictions and teacher"),
        ({"objective": "catrs", "predictions": "a", "catrs.confidence": "own"}, "confidence 'own' got predictions"),
        ({"teacher": "a"}, "for the objectives catrs and selector"),
        ({"objective": "denoiser", "condition": "film", "sigma": [0.1, 0.5]}, "by itself"),
        ({"soft_targets": True}, "frozen classifier"),
        ({"catrs.weigth": 1.0}, "Did you mean 'catrs.weight'"),
        ({"epochs": "many"}, "option epochs"),
    ],
)
def test_an_option_that_is_wrong_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        resolve(settings={"data": "toy", "model": "toy", **settings})
    assert "\n" not in str(error.value)


def test_what_is_missing_or_no_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="option data"):
        resolve(settings={"model": "toy"})
    with pytest.raises(InputError, match="Did you mean 'cifar10-macer'"):
        resolve(preset="cifar10-maker")
    with pytest.raises(InputError, match="cannot read"):
        resolve(file=tmp_path / "no.toml")
    (tmp_path / "c.toml").write_text("= 3")
    with pytest.raises(InputError, match="is not TOML"):
        resolve(file=tmp_path / "c.toml")
    with pytest.raises(InputError, match="NAME=VALUE"):
        setting("lr")
    assert setting("lr = 0.5") == ("lr", 0.5)
    assert setting("sigma=[0.1, 1.0]") == ("sigma", [0.1, 1.0])
    assert setting("objective=macer") == ("objective", "macer")
