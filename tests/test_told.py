"""Base classifiers that take sigma: counts are of one function, however the work is cut; search and ascent tell it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import ddsmoothing as dds
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine
from ddsmoothing.errors import InputError
from ddsmoothing.models import DiffusionDenoiser, EdmDenoiser, PixelDenoiser
from ddsmoothing.models.schedules import alphas_bar
from ddsmoothing.sigma.ascent import ascend_sigma
from ddsmoothing.streams import Stream

SIDE = 8


class Mixer(nn.Module):
    """A convolution that is told sigma or a timestep."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(told.float()).to(x.dtype)[:, None, None, None]
        return x + self.two(torch.tanh(self.one(x) + wave))


def classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
    return nn.Sequential(*layers)


MODELS = {
    "diffusion": lambda: dds.DenoisedClassifier(DiffusionDenoiser(Mixer(0), alphas_bar("linear", 1000)), classifier(1)),
    "edm": lambda: dds.DenoisedClassifier(EdmDenoiser(Mixer(0)), classifier(1), classifier_range=(-1, 1)),
    "pixel": lambda: dds.DenoisedClassifier(PixelDenoiser(Mixer(0)), classifier(1)),
    "by sigma": lambda: dds.BySigma([(0.2, classifier(1)), (0.4, classifier(2)), (math.inf, MODELS["pixel"]())]),
}
SIGMAS = [0.12, 0.2, 0.3, 0.5, 1.0]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return (torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 255).round().to(torch.uint8)


def smoothed(model: nn.Module, **options: object) -> dds.SmoothedClassifier:
    return dds.SmoothedClassifier(model.eval(), dds.L2Certificate(), num_classes=5, **options)  # type: ignore[arg-type]


def counted(classifier: dds.SmoothedClassifier, x: torch.Tensor, rows: list[int], n: int = 300) -> np.ndarray:
    """Counts of these inputs, each at its own sigma, in this order."""
    batch = classifier.prepare(x, range(len(x)))
    requests = [Request(row=row, sigma=SIGMAS[row], stream=Stream.CERTIFY, n=n) for row in rows]
    return np.stack(classifier.count(batch, requests, 7))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_the_same_at_any_block_size_packed_or_alone(name: str, precision: str, x: torch.Tensor) -> None:
    """Padding, companions of other sigmas and the cut of the work change nothing.

    Within one block size this is exact. Between block sizes logits differ by rounding, so a near tie could flip: in
    fp32 none does here; in bf16, where many are near, only one block size is compared.
    """
    model = MODELS[name]()
    sizes = [64, 7, 256] if precision == "fp32" else [64]
    whole = counted(smoothed(model, block_size=64, precision=precision), x, [0, 1, 2, 3, 4])
    assert (whole.sum(1) == 300).all() and (whole.max(1) < 300).any()
    for size in sizes:
        one = smoothed(model, block_size=size, precision=precision)
        assert np.array_equal(counted(one, x, [4, 2, 0, 3, 1]), whole[[4, 2, 0, 3, 1]])
        for row in range(5):
            assert np.array_equal(counted(one, x, [row]), whole[[row]])


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_model_at_each_sigma(name: str, x: torch.Tensor) -> None:
    """As of a model that does not take sigma and has it written in; told another sigma, the counts are others."""

    class At(nn.Module):
        def __init__(self, model: nn.Module, sigma: float) -> None:
            super().__init__()
            self.model, self.sigma = model, sigma

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            return self.model(noisy, torch.full((len(noisy),), self.sigma))

    model = MODELS[name]()
    whole = counted(smoothed(model, block_size=64), x, [0, 1, 2, 3, 4])
    for row, sigma in enumerate(SIGMAS):
        assert np.array_equal(counted(smoothed(At(model, sigma), block_size=64), x, [row]), whole[[row]])
    wrong = [counted(smoothed(At(model, 2 * sigma), block_size=64), x, [row])[0] for row, sigma in enumerate(SIGMAS)]
    assert not np.array_equal(np.stack(wrong), whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_gate_tells_sigma(name: str, x: torch.Tensor) -> None:
    model, inputs, sigma = MODELS[name]().eval(), x.float() / 255, torch.tensor(SIGMAS)
    with torch.inference_mode():
        wanted = model(inputs, sigma)
    torch.testing.assert_close(Engine(model).logits(inputs, sigma), wanted, atol=0, rtol=0)
    torch.testing.assert_close(Engine(model).logits(inputs, 0.3), model(inputs, torch.full((5,), 0.3)).detach())


class Best(nn.Module):
    """Class 1 round the origin, with a half width that depends on sigma: a search that is told sigma finds the peak."""

    takes_sigma = True

    def __init__(self, limit: float = 0.35, sigma_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.limit, self.sigma_range = limit, sigma_range

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        width = torch.where(sigma < self.limit, 2.0 * sigma, 0.01)  # good up to the limit, useless above
        inside = x.flatten(1)[:, 0].abs() < width
        return torch.nn.functional.one_hot(inside.long(), 2).double()


def test_the_search_follows_what_the_model_does_at_each_sigma() -> None:
    chosen = dds.SmoothedClassifier(Best(), dds.L2Certificate(), num_classes=2)
    found = dds.search_sigma(chosen, torch.zeros(6, 2), sigma0=0.2, sigma_min=0.05, sigma_max=1.0, seed=0, ids=range(6))
    assert ((found.sigma > 0.2) & (found.sigma < 0.36)).all()
    assert (found.anchor == 1).all()


def test_the_search_stays_inside_the_sigmas_trained_on_unless_told_otherwise() -> None:
    narrow, free = (
        dds.SmoothedClassifier(Best(9.0, trained), dds.L2Certificate(), num_classes=2) for trained in ((0.1, 0.3), None)
    )
    x = torch.zeros(4, 2)
    found = dds.search_sigma(narrow, x, sigma0=0.2, seed=0)
    assert ((found.sigma >= 0.25) & (found.sigma <= 0.3)).all() and found.at_border.any()
    assert (dds.search_sigma(narrow, x, sigma0=0.2, sigma_max=0.6, seed=0).sigma > 0.5).all()
    assert (dds.search_sigma(free, x, sigma0=0.2, seed=0).sigma > 0.7).all()
    with pytest.raises(InputError, match=r"sigma0=0\.5 lies outside"):
        dds.search_sigma(narrow, x, sigma0=0.5, seed=0)


class Sharp(nn.Module):
    """Two classes; how sure it is depends on sigma, smoothly."""

    takes_sigma = True

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        side = (x.flatten(1).sum(1) + 0.5) * (1.0 + 3.0 * sigma)
        return torch.stack((side, -side), 1)


@pytest.mark.parametrize("certificate", [dds.L2Certificate(), dds.L1Certificate()])
@pytest.mark.parametrize("max_rows", [None, 4])
def test_the_ascent_takes_the_total_derivative(certificate: dds.Certificate, max_rows: int | None) -> None:
    """One step of one input, against differences of the radius with the same noise; without the model's own share of
    sigma the step is another."""
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    scale, step, samples = certificate.noise.scale, 0.05, 16

    def radius(theta: float, told: float) -> float:
        generator = torch.Generator().manual_seed(5)
        if max_rows is None:
            generators, rows = [generator], samples
        else:  # drawn again when gradients pass, so each part has a seed
            seeds = [int(torch.randint(2**62, (), generator=generator)) for _ in range(samples // max_rows)]
            generators, rows = [torch.Generator().manual_seed(seed) for seed in seeds], max_rows
        at = torch.full((rows, 1), theta, dtype=torch.float64)
        noise = torch.cat([certificate.sample_noise(x.repeat(rows, 1), at, generator=g) for g in generators])
        probs = Sharp()(x + noise, torch.full((samples,), told)).softmax(1).mean(0).topk(2).values
        return float(certificate.compute_radius_estimate(probs[None], torch.tensor([theta], dtype=torch.float64))[0])

    h, start = 1e-4, scale(0.3)
    ratio = certificate.noise.sigma(1.0)
    total = (radius(start + h, (start + h) * ratio) - radius(start - h, (start - h) * ratio)) / (2 * h)
    partial = (radius(start + h, 0.3) - radius(start - h, 0.3)) / (2 * h)
    options = {"step": step, "iterations": 1, "samples": samples, "seed": 5, "clamp": (0.001, 0.999)}
    moved = ascend_sigma(Sharp(), x, 0.3, certificate=certificate, max_rows=max_rows, **options)
    assert float(scale(float(moved[0]))) == pytest.approx(start + step * total, abs=2e-4 * step + 1e-6)
    assert abs(total - partial) > 0.05 * abs(total)


def test_the_ascent_tells_each_copy_its_input_s_sigma() -> None:
    seen = []

    class Recorder(Sharp):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            seen.append(sigma.detach().clone())
            return super().forward(x, sigma)

    ascend_sigma(Recorder(), torch.rand(2, 2), torch.tensor([0.1, 0.4]), iterations=1, samples=3, seed=0)
    torch.testing.assert_close(seen[0], torch.tensor([0.1, 0.1, 0.1, 0.4, 0.4, 0.4]))


def test_the_ascent_stays_inside_the_sigmas_trained_on_unless_told_otherwise() -> None:
    model = Sharp()
    model.sigma_range = (0.1, 0.5)
    options = {"step": 5.0, "iterations": 3, "samples": 8, "seed": 0}
    inside = ascend_sigma(model, torch.rand(4, 2), 0.3, **options)
    assert ((inside >= 0.1) & (inside <= 0.5)).all()
    wider = ascend_sigma(model, torch.rand(4, 2), 0.3, sigma_max=2.0, **options)
    assert (wider > 0.5).any()


def test_where_sigma_has_steps_it_has_no_gradient() -> None:
    """A nearest timestep and a choice among networks: the ascent moves by the noise alone, and does not fail."""
    for name in ("diffusion", "by sigma"):
        model = MODELS[name]().eval()
        moved = ascend_sigma(model, torch.rand(3, 1, SIDE, SIDE), 0.3, step=0.01, iterations=2, samples=4, seed=0)
        assert torch.isfinite(moved).all() and (moved != 0.3).any()


def test_the_calls_of_2021_take_such_models_too() -> None:
    theta = torch.full((3,), 0.3)
    moved = dds.optimize_isotropic_dds(Sharp(), torch.rand(3, 2), dds.L2Certificate(), 0.04, theta, 2, 4)
    assert moved.shape == (3,) and torch.isfinite(moved).all()
    assert torch.equal(theta, torch.full((3,), 0.3))
