"""The paper's ascent: its rule, its traps, and that nothing of the caller's is touched."""

import copy
import math

import pytest
import torch
from torch import nn

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.sigma.ascent import ASCENTS, ascend_sigma


class Linear(nn.Module):
    """Two classes on either side of the plane ``w.x = b``, with a temperature that keeps the softmax soft."""

    def __init__(self, d: int = 6, temperature: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.nn.functional.normalize(torch.randn(d), dim=0))
        self.temperature = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = (x.flatten(1) @ self.weight) / self.temperature
        return torch.stack((side, -side), dim=1)


class Downhill(nn.Module):
    """Certain of one class at the input and undecided anywhere else, so that less noise is always better."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = 3 * torch.exp(-((x.flatten(1) - 0.01) ** 2).sum(1) * 4)
        return torch.stack((side, -side), 1)


class Record(nn.Module):
    """Remembers every batch it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        return torch.stack((x.flatten(1).sum(1), -x.flatten(1).sum(1)), 1)


def by_hand(model: nn.Module, x: torch.Tensor, sigma: float, step: float, iterations: int, samples: int, seed: int):
    """The paper's rule for one input, written out by finite differences of the same noise."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.distributions.Normal(0.0, 1.0)
    for _ in range(iterations):
        noise = torch.randn((samples, *x.shape), generator=generator, dtype=x.dtype)

        def radius(s: float, noise: torch.Tensor = noise) -> float:
            p = model(x + s * noise).softmax(1).mean(0).topk(2).values.clamp(0.02, 0.98)
            return float(s / 2 * (normal.icdf(p[0]) - normal.icdf(p[1])))

        h = 1e-5
        sigma += step * (radius(sigma + h) - radius(sigma - h)) / (2 * h)
    return sigma


def test_follows_the_papers_rule_step_by_step() -> None:
    model, x = Linear().double(), torch.full((1, 6), 0.3, dtype=torch.float64)
    got = ascend_sigma(model, x, 0.25, step=0.02, iterations=5, samples=40, seed=3)
    with torch.no_grad():
        assert float(got) == pytest.approx(by_hand(model, x[0], 0.25, 0.02, 5, 40, 3), rel=1e-6)


def test_presets_are_those_of_the_scripts_and_of_the_package() -> None:
    paper, package = ASCENTS["paper"], ASCENTS["package-2021"]
    assert (paper.step, paper.iterations, paper.samples, paper.clamp) == (1e-4, 100, 1, (0.02, 0.98))
    assert (package.step, package.iterations, package.samples, package.clamp) == (0.04, 900, 100, (0.001, 0.999))


def test_saturated_inputs_grow_by_a_constant() -> None:
    model, x = Linear(temperature=1e-3).double(), torch.full((1, 6), 50.0, dtype=torch.float64)
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.98, 0.02], dtype=torch.float64))
    got = ascend_sigma(model, x, 0.25, step=0.01, iterations=7, samples=2, seed=0)
    assert float(got) == pytest.approx(0.25 + 7 * 0.01 * float(z[0] - z[1]) / 2, rel=1e-9)


def test_copies_are_interleaved_with_their_own_sigma() -> None:
    model, x = Record(), torch.tensor([[0.0], [100.0]])
    ascend_sigma(model, x, torch.tensor([1e-6, 1.0]), iterations=1, samples=5, seed=0)
    seen = model.seen[0].flatten()
    assert (seen[:5].abs() < 1e-3).all()  # five copies of the first input at its tiny sigma
    assert ((seen[5:] - 100.0).abs() > 1e-3).all()


def test_bounds_hold_and_without_them_a_negative_sigma_is_an_error() -> None:
    x = torch.full((3, 6), 0.01)
    kept = ascend_sigma(Linear(), x, 0.3, step=5.0, iterations=4, samples=8, sigma_min=0.1, sigma_max=0.4, seed=0)
    assert ((kept >= 0.1 - 1e-6) & (kept <= 0.4 + 1e-6)).all()
    with pytest.raises(InputError, match="sigma_min"):
        ascend_sigma(Downhill(), x, 0.3, step=5.0, iterations=20, samples=64, seed=0)


def test_anchor_keeps_the_first_class_and_the_plain_rule_does_not() -> None:
    class Drift(nn.Module):
        """Class 0 near the input, class 1 wherever noise is large."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            far = x.flatten(1).norm(dim=1) - 2.0
            return torch.stack((-4 * far, 4 * far), 1)

    x = torch.zeros(1, 8)
    options = {"step": 0.2, "iterations": 120, "samples": 64, "seed": 1, "sigma_min": 0.05, "sigma_max": 5.0}
    free = float(ascend_sigma(Drift(), x, 0.8, **options))
    anchored = float(ascend_sigma(Drift(), x, 0.6, anchored=True, **options))
    assert free > 2.0  # the class of pure noise took over
    assert anchored < 0.9


def test_keep_best_returns_an_iterate_at_least_as_good() -> None:
    """Steps so long that they jump over the peak and back: the best is neither the first iterate nor the last."""

    class Hill(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            far = 4 * (x.flatten(1).norm(dim=1) - 2.0)
            return torch.stack((-far, far), 1)

    x, options = torch.zeros(1, 8), {"step": 0.15, "samples": 256, "seed": 1, "sigma_min": 0.05, "anchored": True}
    walk = [float(ascend_sigma(Hill(), x, 0.1, iterations=k, **options)) for k in range(6)]
    kept = float(ascend_sigma(Hill(), x, 0.1, iterations=6, keep_best=True, **options))
    smoothed = dds.SmoothedClassifier(Hill(), dds.L2Certificate(), num_classes=2)
    radii = [float(smoothed.certify(x, sigma, n=4000, seed=0).radius[0]) for sigma in walk[:2]]
    assert kept in walk[1:-1]
    assert kept == walk[1]
    assert radii[1] > 2 * radii[0]


def test_micro_batches_change_nothing_but_the_draw() -> None:
    x = torch.linspace(0.1, 0.5, 4)[:, None] * torch.ones(4, 6)
    whole = ascend_sigma(Linear(), x, 0.2, step=0.02, iterations=30, samples=3000, seed=0)
    cut = ascend_sigma(Linear(), x, 0.2, step=0.02, iterations=30, samples=3000, seed=0, max_rows=500)
    torch.testing.assert_close(whole, cut, rtol=0.05, atol=0.0)


def test_rows_in_memory_are_bounded() -> None:
    model = Record()
    ascend_sigma(model, torch.zeros(5, 3), 0.2, iterations=1, samples=10, max_rows=4, seed=0)
    assert max(len(seen) for seen in model.seen) <= 4


def test_l1_moves_lambda() -> None:
    x = torch.full((1, 6), 0.3)
    moved = float(
        ascend_sigma(Linear(), x, 0.2, certificate=dds.L1Certificate(), step=0.01, iterations=1, samples=500, seed=5)
    )
    lam = math.sqrt(3) * 0.2
    noise = (2 * torch.rand((500, 6), generator=torch.Generator().manual_seed(5)) - 1).double()
    model = Linear().double()

    def radius(half_width: float) -> float:
        p = model(x.double() + half_width * noise).softmax(1).mean(0).topk(2).values
        return float(half_width * (p[0] - p[1]))

    with torch.no_grad():
        slope = (radius(lam + 1e-5) - radius(lam - 1e-5)) / 2e-5
    assert moved == pytest.approx((lam + 0.01 * slope) / math.sqrt(3), rel=1e-4)


def test_leaves_model_tensors_and_global_state_as_they_came() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].weight.requires_grad_(False)
    model[3].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    x, sigma = torch.rand(5, 4), torch.full((5,), 0.2, requires_grad=True)
    x_before = x.clone()
    with torch.no_grad():
        out = ascend_sigma(model, x, sigma, iterations=3, samples=4, step=0.01)
    assert not out.requires_grad
    assert out.shape == (5,)
    assert out.data_ptr() != sigma.data_ptr()
    torch.testing.assert_close(sigma.detach(), torch.full((5,), 0.2), rtol=0, atol=0)
    torch.testing.assert_close(x, x_before, rtol=0, atol=0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_state_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).train()
    with pytest.raises(ModelError, match="NaN"):
        ascend_sigma(lambda x: torch.full((len(x), 2), torch.nan), torch.rand(2, 4), 0.2, iterations=1)
    with pytest.raises(InputError):
        ascend_sigma(model, torch.rand(2, 4), 0.2, step=math.nan, iterations=2, samples=2)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_bad_arguments_are_named() -> None:
    x = torch.rand(2, 4)
    for options, words in [
        ({"preset": "papr"}, "paper"),
        ({"outputs": "softmax"}, "logits"),
        ({"samples": 0}, "samples"),
        ({"iterations": -1}, "iterations"),
    ]:
        with pytest.raises(InputError, match=words):
            ascend_sigma(Linear(4), x, 0.2, **options)
    with pytest.raises(InputError, match="floating point"):
        ascend_sigma(Linear(4), torch.zeros(2, 4, dtype=torch.uint8), 0.2)
