from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.attacks import Attack, draw_noise, eot_pgd, first_rounded, project, smoothed_gradient
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.campaigns.attack import attack_run
from ddsmoothing.errors import InputError, ModelError, RunError, ShapeError
from ddsmoothing.runs import load_run
from ddsmoothing.sigma import SigmaPolicy
from reference import Half

CERTIFICATES = {"l2": dds.L2Certificate(), "l1": dds.L1Certificate()}
SIGMA = torch.ones(2)  # of no meaning to models that do not take it


def distance(a: torch.Tensor, b: torch.Tensor, norm: str) -> torch.Tensor:
    return (a.double() - b.double()).flatten(1).norm(p=2 if norm == "l2" else 1, dim=1)


def linear_cases(norm: str, cases: int, seed: int) -> tuple[Half, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random half-space in 48 dimensions, inputs, their classes and true distances to its boundary."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(48, generator=generator, dtype=torch.float64)
    half = Half(w.tolist(), 0.5 * float(w.sum()))
    x = torch.rand(cases, 3, 4, 4, generator=generator)
    margin = half(x)[:, 1]
    dual = w.norm() if norm == "l2" else w.abs().max()
    return half, x, (margin > 0).long(), margin.abs() / dual


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_it_finds_the_flip_of_a_linear_classifier(norm: str, sigma: float) -> None:
    """At 1.05 times the true distance in at least 95 % of cases; at 0.95 times never, since there is none."""
    found = total = 0
    for seed in range(10):
        half, x, y, true = linear_cases(norm, 20, seed)
        for factor in (1.05, 0.95):
            points = eot_pgd(
                half,
                x,
                y,
                sigma=sigma,
                radius=factor * true.numpy(),
                certificate=CERTIFICATES[norm],
                generator=torch.Generator().manual_seed(seed),
            )
            assert (distance(points, x, norm) <= factor * true + 1e-6).all()
            flipped = int(((half(points)[:, 1] > 0).long() != y).sum())
            if factor > 1:
                found, total = found + flipped, total + len(x)
            else:
                assert flipped == 0
    assert total == 200
    assert found >= 0.95 * total


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_sure_softmax_does_not_hide_the_gradient(norm: str) -> None:
    half, x, y, true = linear_cases(norm, 8, 3)
    half.w *= 1e4
    half.t *= 1e4
    points = eot_pgd(
        half,
        x,
        y,
        sigma=0.01,
        radius=1.05 * true.numpy(),
        certificate=CERTIFICATES[norm],
        generator=torch.Generator().manual_seed(7),
    )
    assert ((half(points)[:, 1] > 0).long() != y).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_is_the_nearest_point(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    radius = torch.rand(50, generator=generator, dtype=torch.float64) * 3
    inside = project(delta, radius, norm)
    length = distance(inside, torch.zeros_like(inside), norm)
    assert (length <= radius * (1 + 1e-12)).all()
    free = distance(delta, torch.zeros_like(delta), norm) <= radius
    assert torch.equal(inside[free], delta[free])
    gap = (inside - delta).norm(dim=1)
    for _ in range(200):  # no other point of the ball is nearer
        other = torch.randn(50, 6, generator=generator, dtype=torch.float64)
        other *= (radius / other.norm(p=2 if norm == "l2" else 1, dim=1))[:, None]
        assert ((other - delta).norm(dim=1) >= gap - 1e-12).all()


def test_gradient_is_that_of_the_mean_probability() -> None:
    """Against differences of the loss, in double precision."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()
    x, y = torch.randn(2, 5, dtype=torch.float64), torch.tensor([0, 2])
    noise = 0.3 * torch.randn(2, 9, 5, dtype=torch.float64)
    gradient, loss = smoothed_gradient(net, x, y, noise, SIGMA)
    expected = -net(x[:, None] + noise).softmax(-1).mean(1)[torch.arange(2), y].log()
    torch.testing.assert_close(loss, expected.detach())
    for j in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[j] = 1e-6
        high, low = (smoothed_gradient(net, x + way, y, noise, SIGMA)[1] for way in (step, -step))
        slope = (high - low) / 2e-6
        torch.testing.assert_close(slope, gradient[:, j], rtol=1e-5, atol=1e-7)


def test_noise_is_shared_scaled_and_reproducible() -> None:
    x = torch.zeros(3, 2, 2)
    draw = [draw_noise(x, [0.1, 0.2, 0.4], 4000, CERTIFICATES["l2"], torch.Generator().manual_seed(5)) for _ in "ab"]
    assert torch.equal(*draw)
    assert draw[0].shape == (3, 4000, 2, 2)
    np.testing.assert_allclose(draw[0].flatten(1).std(1), [0.1, 0.2, 0.4], rtol=0.03)
    uniform = draw_noise(x, 0.1, 4000, CERTIFICATES["l1"], torch.Generator().manual_seed(5))
    assert float(uniform.abs().max()) <= 0.1 * 3**0.5 + 1e-6
    assert float(uniform.std()) == pytest.approx(0.1, rel=0.03)


def test_it_lowers_the_probability_of_a_real_model_and_leaves_it_as_it_came(
    model: torch.nn.Module, data: dds.Dataset
) -> None:
    x, y = data[:6]
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        points = eot_pgd(
            model, x, y, sigma=0.25, radius=1.0, certificate=CERTIFICATES["l2"], attack=Attack(steps=5, samples=8)
        )
        assert all(p.requires_grad for p in model.parameters())
        assert model.training
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    finally:
        model.eval()
    noise = draw_noise(x, 0.25, 200, CERTIFICATES["l2"], torch.Generator().manual_seed(1))
    after, before = (smoothed_gradient(model, at, y, noise, SIGMA)[1] for at in (points, x))
    assert float((after - before).mean()) > 0.5


def test_bad_calls_are_refused() -> None:
    half, x, y, _ = linear_cases("l2", 3, 0)
    with pytest.raises(InputError, match="at least 1 step"):
        Attack(steps=0)
    with pytest.raises(ShapeError, match=r"expected floating point and \(B,\)"):
        eot_pgd(half, x, y[:2], sigma=0.1, radius=1.0, certificate=CERTIFICATES["l2"])

    def no_gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 2)

    with pytest.raises(ModelError, match="no gradient flows"):
        eot_pgd(no_gradient, x, y, sigma=0.1, radius=1.0, certificate=CERTIFICATES["l2"])


def test_first_rounded_rounds_to_the_grid(half: Half) -> None:
    x = torch.tensor([[100.4, 3.3, 9.0], [100.6, 3.3, 9.0]]) / 255
    assert first_rounded(half)(x).argmax(1).tolist() == [0, 1]
    assert first_rounded(lambda x: x)(x)[0].tolist() == pytest.approx([100 / 255, 3 / 255, 9 / 255])


class AtSigma(torch.nn.Module):
    takes_sigma = True

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(sigma.detach().clone())
        return x.flatten(1)[:, :2] / sigma[:, None]


seen: list[torch.Tensor] = []


@pytest.mark.parametrize("given", [False, True])
def test_a_model_that_takes_sigma_is_attacked_at_the_sigma_of_each_input(given: bool) -> None:
    x, y, sigma = torch.rand(3, 4), torch.tensor([0, 1, 0]), torch.tensor([0.25, 0.5, 0.397])
    noise = sigma[:, None, None] * torch.randn(3, 2, 4) if given else None
    for model in (AtSigma(), first_rounded(AtSigma()), first_rounded(Plain())):
        seen.clear()
        attack = Attack(steps=2, samples=2, restarts=1)
        eot_pgd(model, x, y, sigma=sigma, radius=0.1, certificate=CERTIFICATES["l2"], attack=attack, noise=noise)
        assert len(seen) == 3
        assert all(torch.equal(one, sigma.repeat_interleave(2)) and one.dtype == torch.float32 for one in seen)


class Plain:
    """A bare callable that takes sigma."""

    takes_sigma = True

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return AtSigma()(x, sigma)


def test_what_a_model_raises_under_attack_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"does not take inputs of shape \(64, 4\): RuntimeError: mat1"):
        eot_pgd(
            torch.nn.Linear(3, 2), torch.rand(2, 4), SIGMA.long(), sigma=0.1, radius=1.0, certificate=CERTIFICATES["l2"]
        )


# whole runs, on a half-space whose true distances are known


@pytest.fixture
def half_run(linear: dds.SmoothedClassifier, pixels: torch.Tensor, tmp_path: Path) -> tuple[dds.Run, dds.Dataset]:
    """Inputs on both sides of the half-space at true distances that n can nearly certify."""
    half: Any = linear.model
    x = pixels.numpy()
    data = dds.Dataset(name="pixels", split="test", x=x, y=half(pixels.float() / 255).argmax(1).numpy())
    run = certify_run(linear, data, CertifyRequest(0.5, n0=100, n=20_000, seed=7), tmp_path / "run", model_name="half")
    return run, data


def times(run: dds.Run, factor: float, target: Path) -> dds.Run:
    """The run with its radii multiplied."""
    shutil.copytree(run.path, target)
    lines = [json.loads(line) for line in (target / "results.jsonl").read_text().splitlines()]
    for row in lines:
        row["radius"] *= factor
    (target / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return load_run(target)


def test_true_certificates_hold(half_run: tuple[dds.Run, dds.Dataset], linear: dds.SmoothedClassifier) -> None:
    run, data = half_run
    report = attack_run(run, linear, data, n=4000, seed=1)
    assert report.inputs >= 10
    assert report.inside == ()
    assert report.p_value == 1.0
    assert not report.contradicted
    assert len(report.at(2.0)) >= 0.8 * report.inputs
    assert report.smallest is not None
    assert report.smallest.distance / report.smallest.radius > 1.0
    assert report.allowed == pytest.approx(0.004, rel=1e-3)
    again = attack_run(run, linear, data, n=4000, seed=1)
    assert again.violations == report.violations


def test_radii_that_are_too_large_are_contradicted(
    half_run: tuple[dds.Run, dds.Dataset], linear: dds.SmoothedClassifier, tmp_path: Path
) -> None:
    run, data = half_run
    report = attack_run(times(run, 1.5, tmp_path / "wrong"), linear, data, n=4000, seed=1)
    assert report.contradicted
    assert report.p_value < 1e-6
    assert len({violation.id for violation in report.inside}) >= 0.5 * report.inputs
    assert all(violation.answered == 1 - violation.certified for violation in report.inside)


def test_l1_runs_are_attacked_too(pixels: torch.Tensor, half: Half, tmp_path: Path) -> None:
    data = dds.Dataset(name="pixels", split="test", x=pixels.numpy(), y=None)
    smoothed = dds.SmoothedClassifier(half, dds.L1Certificate(), num_classes=2)
    run = certify_run(smoothed, data, CertifyRequest(0.5, n0=100, n=20_000), tmp_path / "run", model_name="half")
    assert attack_run(run, smoothed, data, n=4000, seed=1).inside == ()
    wrong = attack_run(times(run, 1.5, tmp_path / "wrong"), smoothed, data, n=4000, seed=1)
    assert wrong.contradicted


class Island(torch.nn.Module):
    """Class 1 where the first coordinate is within ``width`` of one half, else class 0."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.register_buffer("width", torch.tensor(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = self.width - (x.flatten(1)[:, 0] - 0.5).abs()
        return torch.stack([torch.zeros_like(margin), margin], 1)


def test_choosing_sigma_again_breaks_pointwise_certificates(tmp_path: Path) -> None:
    """In the middle of an island wide enough for sigma0, whose rim is not; pointwise, the same certificates hold."""
    x = np.full((20, 3), 0.5, dtype=np.float32)
    x[:, 1:] = np.random.default_rng(0).random((20, 2))
    data = dds.Dataset(name="island", split="test", x=x, y=None)
    smoothed = dds.SmoothedClassifier(Island(0.74 * 0.4), dds.L2Certificate(), num_classes=2)
    policy = SigmaPolicy.search(0.4, 0.1, 0.8)
    run = certify_run(
        smoothed, data, CertifyRequest(policy, n0=100, n=5000, seed=4), tmp_path / "run", model_name="island"
    )
    options: dict[str, Any] = {"factors": (0.9, 0.999, 2.0), "n": 2000, "seed": 2}
    held = attack_run(run, smoothed, data, **options)
    assert held.inputs >= 10
    assert held.inside == ()
    broken = attack_run(run, smoothed, data, level="stateless", **options)
    assert broken.level == "stateless"
    assert len(broken.inside) >= 5
    assert {violation.sigma for violation in broken.inside} - set(run.sigma.tolist())


def test_what_cannot_be_attacked(
    run_l2: dds.Run, smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path, model: torch.nn.Module
) -> None:
    with pytest.raises(InputError, match="one fixed sigma is stateless already"):
        attack_run(run_l2, smoothed, data, level="stateless")
    with pytest.raises(InputError, match="unknown level"):
        attack_run(run_l2, smoothed, data, level="certain")
    with pytest.raises(InputError, match="only a memory's own run"):
        attack_run(run_l2, smoothed, data, level="memory")
    with pytest.raises(InputError, match="positive multiples"):
        attack_run(run_l2, smoothed, data, factors=(0.0,))
    half = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, precision="bf16")
    with pytest.raises(InputError, match="precision fp32"):
        attack_run(run_l2, half, data)
    nothing = tmp_path / "nothing"
    shutil.copytree(run_l2.path, nothing)
    rows = [json.loads(line) for line in (nothing / "results.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"prediction": -1, "radius": 0.0}) + "\n" for row in rows)
    (nothing / "results.jsonl").write_text(text)
    with pytest.raises(RunError, match="nothing to attack"):
        attack_run(load_run(nothing), smoothed, data)


# a memory, whose radii hold without exception


@pytest.fixture
def memory_run(run_l2: dds.Run, cli: Callable[..., Answer], tmp_path: Path) -> tuple[Path, Path]:
    """A run of level memory and its memory."""
    out, store = tmp_path / "applied", tmp_path / "a.memory"
    answer = cli("memory", "apply", run_l2.path, "--data", "fashion-mnist-sample", "--store", store, "--out", out)
    assert answer.code == 0, answer.err
    return out, store


FAST = ("--steps", 3, "--samples", 4, "--restarts", 1, "--n", 100, "--max", 3, "--seed", 1)


def test_a_memory_keeps_its_word(memory_run: tuple[Path, Path], cli: Callable[..., Answer]) -> None:
    out, store = memory_run
    before = store.read_bytes()
    answer = cli("attack", out, "--store", store, *FAST)
    assert answer.code == 0, answer.err
    assert "level memory" in answer.out
    assert "0 inputs broken inside their radius" in answer.out
    assert store.read_bytes() == before
    assert cli("verify", out).code == 0


def test_a_memory_run_with_larger_radii_is_contradicted(
    memory_run: tuple[Path, Path], cli: Callable[..., Answer], tmp_path: Path
) -> None:
    out, store = memory_run
    times(load_run(out), 1.5, tmp_path / "wrong")
    answer = cli("attack", tmp_path / "wrong", "--store", store, *FAST)
    assert answer.code == 1
    assert "CONTRADICTED" in answer.out
    assert "more than the" in cli("verify", tmp_path / "wrong").out


def test_a_memory_is_attacked_at_its_own_run_and_inside(
    memory_run: tuple[Path, Path], cli: Callable[..., Answer], run_l2: dds.Run
) -> None:
    out, store = memory_run
    assert "only a memory's own run" in cli("attack", out, *FAST).err
    assert "only a memory's own run" in cli("attack", run_l2.path, "--store", store, *FAST).err
    assert "inside its radii only" in cli("attack", out, "--store", store, "--factors", "1.5", *FAST).err
    assert cli("attack", out, "--as", "stateless", *FAST).code == 2


# the command


def test_command(cli: Callable[..., Answer], run_l2: dds.Run) -> None:
    fast = ("--steps", 3, "--samples", 4, "--restarts", 1, "--n", 100, "--max", 3, "--seed", 1)
    answer = cli("attack", run_l2.path, *fast)
    assert answer.code == 0, answer.err
    assert "3 certified inputs, L2, level pointwise, seed 1" in answer.out
    assert "An attack that fails proves nothing" in answer.out
    value = json.loads(cli("attack", run_l2.path, *fast, "--factors", "0.9,3", "--json").out)
    assert value["factors"] == [0.9, 3.0]
    assert (value["contradicted"], value["inputs"], value["violations_inside"]) == (False, 3, 0)
    assert "expected numbers such as" in cli("attack", run_l2.path, "--factors", "a").err
    assert "stateless already" in cli("attack", run_l2.path, "--as", "stateless").err


def test_command_reports_violations(
    cli: Callable[..., Answer],
    half_run: tuple[dds.Run, dds.Dataset],
    npz: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    half: Half,
) -> None:
    run, data = half_run
    path = npz("pixels", x=data.x, y=data.y)
    path = path if path.exists() else path.with_name("pixels.npz")
    text = (run.path / "header.json").read_text()
    header = json.loads(text)
    header["data"] = dds.load_data(str(path)).fingerprint()
    (run.path / "header.json").write_text(json.dumps(header))
    wrong = times(load_run(run.path), 1.5, tmp_path / "wrong")
    (tmp_path / "halves.py").write_text(
        "from reference import Half\n\n\ndef build():\n    return Half([1.0, 0.0, 0.0], 100.5 / 255)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("--model", "halves:build", "--data", path, "--n", 2000, "--seed", 1)
    answer = cli("attack", wrong.path, *options)
    assert answer.code == 1, answer.err
    assert "CONTRADICTED: " in answer.out
    assert "inside its radius" in answer.out
    assert cli("attack", run.path, *options).code == 0


def test_broken_inputs_are_named_with_their_classes(
    cli: Callable[..., Answer], run_l2: dds.Run, tmp_path: Path
) -> None:
    wrong = times(run_l2, 8.0, tmp_path / "wrong")
    fast = ("--steps", 4, "--samples", 8, "--restarts", 1, "--n", 100, "--max", 4, "--seed", 1)
    answer = cli("attack", wrong.path, *fast)
    assert re.search(r"^input \d+: class \d [A-Z][\w -/]+ becomes \d [A-Z]", answer.out, re.MULTILINE)
    assert answer.code == 1
