"""Denoisers in front of classifiers: timesteps, units, one-shot formulas, precision, identity."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import Denoiser, DiffusionDenoiser, EdmDenoiser, PixelDenoiser, model_hash, trained_range
from ddsmoothing.models.denoisers import refuse_noise
from ddsmoothing.models.schedules import alphas_bar, from_betas, sigmas, timestep_edges

SIGMAS = (0.12, 0.25, 0.5, 0.75, 1.0)
TABLES = {  # published conventions: the first timestep whose sigma is not below
    ("cosine", 4000): (573, 1158, 1984, 2490, 2809),
    ("linear", 1000): (70, 145, 259, 339, 396),
    ("cosine", 1000): (143, 289, 496, 622, 702),
}
LINEAR = alphas_bar("linear", 1000)


class Tiny(nn.Module):
    """A convolution whose answer depends on what it is told and on a label; it remembers what it was given."""

    def __init__(self, channels: int = 2, outputs: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(channels, outputs or channels, 3, padding=1)
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def forward(self, x: torch.Tensor, told: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        self.seen.append((x, told) if labels is None else (x, told, labels))
        wave = torch.sin(told.double() / 50.0).to(x.dtype)[:, None, None, None]
        shift = 0.0 if labels is None else labels.to(x.dtype)[:, None, None, None]
        return self.conv(x) + wave + shift


class Fixed(nn.Module):
    """Gives the same image whatever it is asked: an oracle."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("image", image)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return self.image.to(x.dtype)


def images(size: int = 5, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TABLES)
def test_ceil_gives_the_published_timesteps(name: tuple[str, int]) -> None:
    denoiser = DiffusionDenoiser(Tiny(), alphas_bar(*name), rule="ceil")
    assert tuple(denoiser.timestep(torch.tensor(SIGMAS)).tolist()) == TABLES[name]


@pytest.mark.parametrize("name", TABLES)
def test_nearest_is_nearest_in_logarithm(name: tuple[str, int]) -> None:
    table = alphas_bar(*name)
    own = [math.sqrt((1 - abar) / abar) / 2 for abar in table]
    asked = torch.tensor([*SIGMAS, 1e-5, 0.0123, 3.3, 1e6, *np.geomspace(0.004, 40, 300)], dtype=torch.float32)
    found = DiffusionDenoiser(Tiny(), table).timestep(asked)
    far = [np.abs(np.log(own) - math.log(sigma)) for sigma in asked.tolist()]
    assert found.tolist() == [int(np.argmin(distance)) for distance in far]
    published = torch.tensor(TABLES[name])
    assert ((published - found[:5] >= 0) & (published - found[:5] <= 1)).all()  # of two neighbours the nearer one
    assert (published != found[:5]).any()


def test_ties_go_to_the_smaller_timestep_and_sigmas_of_the_table_to_their_own() -> None:
    table = [1 / (1 + 4 * s * s) for s in (0.0625, 0.25, 1.0)]  # exact in binary, with exact means 0.125 and 0.5
    denoiser = DiffusionDenoiser(Tiny(), table)
    np.testing.assert_allclose(sigmas(table), [0.0625, 0.25, 1.0], rtol=1e-14)
    edges = timestep_edges(table, "nearest")
    np.testing.assert_allclose(edges, [0.125, 0.5], rtol=1e-6)
    assert (edges.astype(np.float64) <= np.sqrt(sigmas(table)[:-1] * sigmas(table)[1:])).all()
    above = torch.nextafter(torch.from_numpy(edges), torch.tensor(9.0))
    assert denoiser.timestep(torch.from_numpy(edges)).tolist() == [0, 1]
    assert denoiser.timestep(above).tolist() == [1, 2]
    assert denoiser.timestep(torch.tensor([0.0625, 0.25, 1.0])).tolist() == [0, 1, 2]


def test_schedules_are_the_published_ones() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(LINEAR, np.cumprod(1 - betas), rtol=1e-12)
    np.testing.assert_allclose(alphas_bar("linear", 4000), np.cumprod(1 - np.linspace(2.5e-5, 5e-3, 4000)), rtol=1e-12)
    roots = np.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 50)
    np.testing.assert_allclose(alphas_bar("scaled_linear", 50, 0.0015, 0.0195), np.cumprod(1 - roots**2), rtol=1e-12)
    cosine = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    np.testing.assert_allclose(alphas_bar("cosine", 100)[:-1], np.array(cosine[1:-1]) / cosine[0], rtol=1e-9)
    assert alphas_bar("cosine", 100)[-1] == pytest.approx(alphas_bar("cosine", 100)[-2] * 0.001)
    assert from_betas([0.5, 0.5]) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: alphas_bar("sqrt", 10), "unknown schedule 'sqrt'"),
        (lambda: alphas_bar("linear", 1), "expected at least 2"),
        (lambda: from_betas([0.1, 1.0]), "between 0 and 1"),
        (lambda: sigmas([0.5, 0.6]), "fall strictly"),
        (lambda: sigmas([0.5, 0.0]), "fall strictly"),
        (lambda: sigmas([0.5, float("nan")]), "fall strictly"),
        (lambda: timestep_edges(LINEAR, "floor"), "unknown timestep rule 'floor'"),
        (lambda: DiffusionDenoiser(Tiny(), LINEAR, prediction="x0"), "unknown prediction 'x0'"),
        (lambda: DiffusionDenoiser(Tiny(), LINEAR, sigma_range=(0.5, 0.1)), "smaller first"),
        (lambda: EdmDenoiser(Tiny(), data_std=0.0), "data_std is 0.0"),
        (lambda: EdmDenoiser(Tiny(), sigma_range=3.0), "sigma_range is 3.0, expected two"),
        (lambda: EdmDenoiser(Tiny(), sigma_range=("a", 1)), "expected two positive numbers"),
        (lambda: PixelDenoiser(7), "a denoiser's network is int"),
        (lambda: dds.DenoisedClassifier(Tiny(), Tiny()), "does not take sigma"),
        (lambda: dds.DenoisedClassifier(PixelDenoiser(Tiny()), Tiny(), resize=(4, 0)), "resize is"),
        (lambda: dds.DenoisedClassifier(PixelDenoiser(Tiny()), Tiny(), classifier_range=(1, 0)), "classifier_range is"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        change()


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_an_oracle_gives_back_the_clean_image(prediction: str) -> None:
    """Units: noise of sigma on pixels in [0, 1] is noise of 2 sigma on those in [-1, 1]."""
    x, noise = images(), torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.05, 0.12, 0.5, 1.0, 2.0])
    s = 2 * sigma[:, None, None, None]
    abar = 1 / (1 + s * s)
    told = {"epsilon": noise, "sample": 2 * x - 1, "v": abar.sqrt() * noise - (1 - abar).sqrt() * (2 * x - 1)}
    y = x + sigma[:, None, None, None] * noise
    right = DiffusionDenoiser(Fixed(told[prediction]), LINEAR, prediction=prediction, clip=False)
    torch.testing.assert_close(right(y, sigma), x, atol=2e-6, rtol=1e-5)
    if prediction != "sample":  # a sigma taken for that of [-1, 1] leaves half of the noise, or takes it off twice
        assert (right(y, sigma / 2) - x).abs().mean() > 0.1
        assert (right(y, sigma * 2) - x).abs().mean() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_one_shot_formula_in_the_words_of_the_schedule(prediction: str, scale: float) -> None:
    """At sigmas of the table, image by image, from abar and betas alone; wrong variants are far from it."""
    network = Tiny().double()
    denoiser = DiffusionDenoiser(network, LINEAR, prediction=prediction, timestep_scale=scale, clip=False)
    y, steps = images(seed=2).double() + 0.3, [0, 70, 259, 500, 999]
    sigma = torch.tensor(sigmas(LINEAR)[steps], dtype=torch.float32)
    found = denoiser(y, sigma)
    for i, t in enumerate(steps):
        abar = float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: t + 1]))
        x_t = math.sqrt(abar) * (2 * y[i : i + 1] - 1)
        answer = network(x_t, torch.tensor([t * scale]))
        clean = {
            "epsilon": (x_t - math.sqrt(1 - abar) * answer) / math.sqrt(abar),
            "v": math.sqrt(abar) * x_t - math.sqrt(1 - abar) * answer,
            "sample": answer,
        }[prediction]
        torch.testing.assert_close(found[i : i + 1], (clean + 1) / 2, atol=1e-5, rtol=1e-5)
        if t in (70, 259, 500):
            unscaled = network(2 * y[i : i + 1] - 1, torch.tensor([t * scale]))  # z not divided by sqrt(1 + s^2)
            assert (network(x_t, torch.tensor([t * scale])) - unscaled).abs().max() > 1e-3
            doubled = denoiser(y[i : i + 1], 2 * sigma[i : i + 1])
            assert (doubled - found[i : i + 1]).abs().max() > 1e-3


def test_edm_formula_in_the_words_of_the_paper() -> None:
    network = Tiny().double()
    denoiser, y = EdmDenoiser(network), images(seed=4).double() - 0.1
    sigma = torch.tensor([0.01, 0.25, 0.5, 1.0, 7.0])
    found = denoiser(y, sigma)
    for i, own in enumerate(sigma.double().tolist()):
        noise, data = 2 * own, 0.5  # sigma and sigma_data of images in [-1, 1]
        skip, out = data**2 / (noise**2 + data**2), noise * data / math.sqrt(noise**2 + data**2)
        into = 1 / math.sqrt(noise**2 + data**2)
        z = 2 * y[i : i + 1] - 1
        told = torch.tensor([math.log(noise) / 4], dtype=torch.float64)
        clean = skip * z + out * network(into * z, told)
        torch.testing.assert_close(found[i : i + 1], (clean + 1) / 2, atol=1e-7, rtol=1e-7)
    assert denoiser.sigma_range == (0.001, 40.0)


def test_a_pixel_denoiser_gets_pixels_and_sigma_as_they_are() -> None:
    network, y, sigma = Tiny(), images(), torch.full((5,), 0.3)
    found = PixelDenoiser(network)(y, sigma)
    torch.testing.assert_close(found, network(y, sigma), atol=0, rtol=0)
    assert torch.equal(network.seen[0][0], y) and torch.equal(network.seen[0][1], sigma)
    assert trained_range(PixelDenoiser(network)) is None
    network.sigma_range = (0.1, 1)
    assert trained_range(PixelDenoiser(network)) is None  # of a network that does not take sigma it may be anything
    network.takes_sigma = True
    assert trained_range(PixelDenoiser(network)) == (0.1, 1.0)
    assert trained_range(dds.DenoisedClassifier(PixelDenoiser(network), Tiny())) == (0.1, 1.0)


def test_the_clip_is_the_image_s_range() -> None:
    y, sigma = 5 * images() - 2, torch.full((5,), 0.3)
    free, clipped = (DiffusionDenoiser(Tiny(), LINEAR, clip=clip)(y, sigma) for clip in (False, True))
    assert free.min() < 0 and free.max() > 1
    assert torch.equal(clipped, free.clamp(0, 1))


KINDS = {
    "epsilon": lambda network: DiffusionDenoiser(network, LINEAR),
    "scaled": lambda network: DiffusionDenoiser(network, LINEAR, timestep_scale=0.25),
    "edm": EdmDenoiser,
    "pixel": PixelDenoiser,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_reaches_the_network_alone(kind: str, dtype: torch.dtype) -> None:
    """A cast copy: images of that type go in and come out, but neither sigma nor a timestep is ever rounded."""
    exact = KINDS[kind](Tiny())
    cast = copy.deepcopy(exact).to(dtype)
    y, sigma = images(), torch.tensor([0.0507, 0.12, 0.501, 1.0, 2.03])
    out = cast(y.to(dtype), sigma)
    assert out.dtype == dtype
    x, told = cast.network.seen[-1]
    assert x.dtype == dtype
    exact(y, sigma)
    assert torch.equal(told, exact.network.seen[-1][1])
    assert told.dtype == (torch.int64 if kind == "epsilon" else torch.float32)
    assert (out.float() - exact(y, sigma)).abs().max() < 0.1
    if kind == "epsilon":
        assert told.tolist()[3] == 396
        assert int(torch.tensor(397.0).bfloat16()) == 396 != 397  # what a cast would make of timesteps


def test_sigma_is_called_in_float32_whatever_is_certified() -> None:
    seen = []
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    model = dds.DenoisedClassifier(DiffusionDenoiser(Tiny(), LINEAR), classifier).to(torch.bfloat16)
    model.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].dtype))
    model(images().bfloat16(), torch.full((5,), 0.3))
    assert seen == [torch.float32]


def test_a_learned_variance_is_left_off() -> None:
    y, sigma = images(), torch.full((5,), 0.3)
    wide = Tiny(2, 4)
    narrow = Tiny(2, 2)
    narrow.conv.weight.data, narrow.conv.bias.data = wide.conv.weight.data[:2], wide.conv.bias.data[:2]
    torch.testing.assert_close(
        DiffusionDenoiser(wide, LINEAR)(y, sigma), DiffusionDenoiser(narrow, LINEAR)(y, sigma), atol=1e-6, rtol=1e-6
    )
    for wrong in (Tiny(2, 3), Fixed(torch.zeros(5, 2, 6, 7)), Fixed(torch.zeros(1, 2, 6, 6)), nn.Identity()):
        network = wrong if not isinstance(wrong, nn.Identity) else Pair()
        with pytest.raises(ModelError, match="expected images"):
            DiffusionDenoiser(network, LINEAR)(y, sigma)


class Pair(nn.Module):
    """Returns no tensor."""

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, told


@pytest.mark.parametrize("make", [lambda n, **o: DiffusionDenoiser(n, LINEAR, **o), EdmDenoiser])
def test_a_class_conditional_network_is_told_one_class(make) -> None:
    network = Tiny()
    make(network, label=7)(images(), torch.full((5,), 0.3))
    assert network.seen[-1][2].tolist() == [7] * 5
    make(network)(images(), torch.full((5,), 0.3))
    assert len(network.seen[-1]) == 2


def test_everything_that_maps_sigma_is_in_the_hash() -> None:
    def model(options=None, kind=DiffusionDenoiser, table=LINEAR, **behind):
        tables = (table,) if kind is DiffusionDenoiser else ()
        denoiser = kind(Tiny(), *tables, **(options or {}))
        return dds.DenoisedClassifier(denoiser, nn.Flatten(), **behind)

    models = [
        model(),
        model(table=alphas_bar("cosine", 1000)),
        model(table=alphas_bar("linear", 1000, 1e-4, 0.0200001)),
        model({"prediction": "v"}),
        model({"rule": "ceil"}),
        model({"timestep_scale": 0.25}),
        model({"clip": False}),
        model({"label": 3}),
        model({"sigma_range": (0.1, 1.0)}),
        model(resize=8),
        model(classifier_range=(-1, 1)),
        model(kind=EdmDenoiser),
        model({"data_std": 0.25}, EdmDenoiser),
        model({"clip": True}, EdmDenoiser),
        model(kind=PixelDenoiser),
        model({"clip": True}, PixelDenoiser),
    ]
    assert len({model_hash(each) for each in models}) == len(models)
    assert model_hash(model()) == model_hash(models[0]) == model_hash(copy.deepcopy(models[0]))


class Bright(nn.Module):
    """Logits that are the mean brightness of every channel, and what it was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.detach()
        return x.mean((2, 3))


def test_a_denoised_classifier_is_the_one_after_the_other() -> None:
    denoiser, y, sigma = DiffusionDenoiser(Tiny(), LINEAR), images(), torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    clean = denoiser(y, sigma)
    plain = dds.DenoisedClassifier(denoiser, Bright())
    assert torch.equal(plain(y, sigma), clean.mean((2, 3)))
    assert plain.takes_sigma is True and plain.denoiser is denoiser and isinstance(plain.classifier, Bright)
    assert plain.sigma_range == denoiser.sigma_range == pytest.approx((0.005, 78.7), rel=1e-3)
    scaled = dds.DenoisedClassifier(denoiser, Bright(), resize=(9, 12), classifier_range=(-1, 1))
    scaled(y, sigma)
    wanted = functional.interpolate(clean, (9, 12), mode="bicubic", antialias=True) * 2 - 1
    torch.testing.assert_close(scaled.classifier.seen, wanted)
    assert dds.DenoisedClassifier(denoiser, Bright(), resize=8).resize == (8, 8)
    half = copy.deepcopy(scaled).bfloat16()
    assert half(y.bfloat16(), sigma).dtype == torch.bfloat16


class Told(nn.Module):
    """A classifier that takes sigma: it answers sigma."""

    takes_sigma = True

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.stack([sigma, -sigma], 1)


def test_a_classifier_that_takes_sigma_is_told_it() -> None:
    sigma = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    assert torch.equal(dds.DenoisedClassifier(PixelDenoiser(Tiny()), Told())(images(), sigma)[:, 0], sigma)


@pytest.mark.parametrize("kind", ["epsilon", "edm", "pixel"])
def test_the_gradient_in_sigma_is_the_total_one(kind: str) -> None:
    """Against finite differences; a diffusion model's timestep, which has steps, is held by few timesteps."""
    table = [1 / (1 + 4 * s * s) for s in (0.01, 0.3, 9.0)]
    make = {"epsilon": lambda n: DiffusionDenoiser(n, table, clip=False), "edm": EdmDenoiser, "pixel": PixelDenoiser}
    model = dds.DenoisedClassifier(make[kind](Tiny().double()), Bright()).double()
    y = images().double()

    def total(sigma: torch.Tensor) -> torch.Tensor:
        return (model(y, sigma) * torch.arange(1.0, 11).reshape(5, 2)).sum(1)

    sigma = torch.linspace(0.2, 0.5, 5, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(total(sigma).sum(), sigma)
    h = 1e-5
    with torch.no_grad():
        slope = (total(sigma + h) - total(sigma - h)) / (2 * h)
    torch.testing.assert_close(gradient, slope, atol=1e-6, rtol=1e-6)
    assert gradient.abs().min() > 1e-4


class Noisy(nn.Module):
    """A denoiser with noise of its own."""

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return y + 1e-3 * torch.randn_like(y)


def test_a_denoiser_that_draws_noise_is_refused() -> None:
    with pytest.raises(ModelError, match="draws noise of its own"):
        refuse_noise(PixelDenoiser(Noisy()), (2, 6, 6))
    with pytest.raises(ModelError, match=r"does not take inputs of shape \(1, 3, 6, 6\)"):
        refuse_noise(PixelDenoiser(Tiny()), (3, 6, 6))
    dropout = PixelDenoiser(nn.Sequential())
    dropout.network = DropOut()
    refuse_noise(dropout, (2, 6, 6))  # which is off when the model is used
    assert dropout.training


class DropOut(nn.Module):
    """Random in training alone."""

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return functional.dropout(y, 0.5, self.training)


def test_the_base_is_not_for_use_by_itself() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Denoiser(Tiny(), clip=True, sigma_range=None, label=None)
