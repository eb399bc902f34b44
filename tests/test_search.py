from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm

import ddsmoothing as dds
from ddsmoothing.claims import rule_for
from ddsmoothing.counting.contract import Request
from ddsmoothing.errors import InputError, SigmaError
from ddsmoothing.noise import Gaussian, Uniform
from ddsmoothing.streams import Stream
from reference import Half

N, ALPHA = 10_000, 0.001


class Band(torch.nn.Module):
    """Class 1 where ``|first number| < half width``: the certified radius of the origin has one peak in sigma."""

    def __init__(self, half_width: float) -> None:
        super().__init__()
        self.half_width = half_width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = x.flatten(1)[:, 0].double().abs() < self.half_width
        return torch.nn.functional.one_hot(inside.long(), 2).double()


def band_radius(half_width: float, sigma: np.ndarray) -> np.ndarray:
    """What n samples would certify at the origin if they came out as expected."""
    p = 2 * norm.cdf(half_width / sigma) - 1
    return np.asarray(sigma * norm.ppf(beta.ppf(ALPHA, N * p, N * (1 - p) + 1)))


@pytest.mark.parametrize("half_width", [0.2, 0.4])
def test_search_finds_the_peak_of_a_band(half_width: float) -> None:
    smoothed = dds.SmoothedClassifier(Band(half_width), dds.L2Certificate(), num_classes=2)
    x = torch.zeros(24, 2)
    found = dds.search_sigma(smoothed, x, sigma0=0.1, sigma_min=0.02, sigma_max=1.0, seed=0, ids=range(24))
    best = band_radius(half_width, np.geomspace(0.02, 1.0, 2000)).max()
    assert band_radius(half_width, found.sigma).mean() > 0.95 * best
    assert np.quantile(band_radius(half_width, found.sigma), 0.1) > 0.85 * best
    assert not found.at_border.any()
    assert (found.anchor == 1).all()
    assert best > 1.5 * band_radius(half_width, np.array([0.03]))[0]  # a fixed sigma would be far off


@pytest.mark.parametrize("vote", ["pairwise", "plurality"])
def test_search_is_near_a_dense_reference_on_real_images(model: torch.nn.Module, data: dds.Dataset, vote: str) -> None:
    """Mean score of 600 samples at each of 13 sigmas, at the sigma found, against the best of the 13."""
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, vote=vote)
    x, ids = data[::100][0], list(range(10))
    found = dds.search_sigma(smoothed, x, sigma0=0.25, sigma_min=0.0625, sigma_max=1.0, seed=0, ids=ids)
    grid = np.geomspace(0.0625, 1.0, 13)
    rows = torch.arange(10).repeat_interleave(len(grid))
    rule = rule_for(vote)
    tallies = [rule.tally(top) for top in found.anchor.tolist()]
    wanted = [(sigma, tally) for tally in tallies for sigma in grid.tolist()]
    requests = [
        Request(row=i, sigma=sigma, stream=Stream.CERTIFY, n=600, tally=tally.kind, anchor=tally.anchor)
        for i, (sigma, tally) in enumerate(wanted)
    ]
    drawn = np.stack(smoothed.count(smoothed.prepare(x[rows], range(len(rows))), requests, 7))
    tops = np.repeat(found.anchor, len(grid))
    counts = drawn[:, 1].min(1) if vote == "pairwise" else drawn[np.arange(len(tops)), tops]
    counts = counts.reshape(10, len(grid))
    score = grid * norm.ppf(beta.ppf(ALPHA, N * (counts + 0.5) / 601, N * (600.5 - counts) / 601 + 1))
    ours = np.array([np.interp(math.log(s), np.log(grid), row) for s, row in zip(found.sigma, score, strict=True)])
    assert ours.mean() > 0.94 * score.max(1).mean()
    assert ours.mean() > 1.1 * score[:, np.abs(grid - 0.25).argmin()].mean()  # sigma0 itself is worse


def test_the_result_is_in_the_range_and_in_the_fine_set(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x = data[:12][0]
    found = dds.search_sigma(smoothed, x, sigma0=0.25, sigma_min=0.1, sigma_max=0.6, seed=1)
    assert ((found.sigma >= 0.1) & (found.sigma <= 0.6)).all()
    inner = found.sigma[~found.at_border]
    np.testing.assert_array_equal(Gaussian().snap(inner), inner)
    assert len(np.unique(found.sigma)) > 2


def test_the_default_range_is_a_quarter_to_four_times_sigma0(smoothed: dds.SmoothedClassifier) -> None:
    found = dds.search_sigma(smoothed, torch.rand(3, 1, 28, 28), sigma0=0.25, seed=0)
    assert ((found.sigma >= 0.0625) & (found.sigma <= 1.0)).all()


def test_search_does_not_depend_on_the_batch(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x = data[[7, 300, 512]][0]
    together = dds.search_sigma(smoothed, x, sigma0=0.25, seed=4)
    backwards = dds.search_sigma(smoothed, x.flip(0), sigma0=0.25, seed=4)
    alone = dds.search_sigma(smoothed, x[1:2], sigma0=0.25, seed=4)
    for name in ("sigma", "anchor", "at_border", "score"):
        np.testing.assert_array_equal(getattr(backwards, name)[::-1], getattr(together, name))
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[1:2])
    other = dds.search_sigma(smoothed, x, sigma0=0.25, seed=5)
    assert not np.array_equal(other.score, together.score)


def test_a_far_plane_wants_all_the_noise_there_is(half: Half) -> None:
    """A plane out of reach: the radius grows with sigma, so both ends of a range are borders."""
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
    x = torch.full((2, 3), 255, dtype=torch.uint8)
    found = dds.search_sigma(smoothed, x, sigma0=0.05, sigma_min=0.03, sigma_max=0.09, seed=0, ids=[0, 1])
    assert found.at_border.all()
    assert (found.sigma > 0.085).all()
    low = dds.search_sigma(
        dds.SmoothedClassifier(Band(0.08), dds.L2Certificate(), num_classes=2),
        torch.zeros(1, 2),
        sigma0=0.09,
        sigma_min=0.0723,
        sigma_max=1.0,
        seed=0,
    )
    assert low.sigma[0] < 0.08


def test_the_class_is_anchored() -> None:
    """Pure noise gets class 0 of a band; without an anchor large sigmas would win by far."""
    smoothed = dds.SmoothedClassifier(Band(0.3), dds.L2Certificate(), num_classes=2)
    found = dds.search_sigma(smoothed, torch.zeros(1, 2), sigma0=0.12, sigma_min=0.03, sigma_max=6.0, seed=0)
    assert found.anchor.tolist() == [1]
    assert found.sigma[0] < 0.35
    certified = smoothed.certify(torch.zeros(1, 2), found, n=2000, seed=1)
    assert certified.prediction.tolist() == [1]
    drifted = smoothed.certify(torch.zeros(1, 2), 6.0, n=2000, seed=1)
    assert drifted.prediction.tolist() == [0]
    assert drifted.radius[0] > certified.radius[0]


def test_search_for_l1(half: Half) -> None:
    """Uniform noise: all samples agree while lambda stays inside the distance; no radius exceeds the distance."""
    smoothed = dds.SmoothedClassifier(half, dds.L1Certificate(), num_classes=2)
    x = torch.tensor([[200, 7, 7], [140, 7, 7]], dtype=torch.uint8)
    found = dds.search_sigma(smoothed, x, sigma0=0.1, sigma_min=0.02, sigma_max=0.6, seed=0)
    result = smoothed.certify(x, found, n=N, seed=1)
    distance = (x[:, 0].double() / 255 - half.t).numpy()
    assert (result.radius > 0.85 * distance).all()
    assert (result.radius <= distance).all()
    inner = found.sigma[~found.at_border]
    np.testing.assert_array_equal(Uniform().snap(inner), inner)


def test_a_finite_set_of_sigmas() -> None:
    smoothed = dds.SmoothedClassifier(Band(0.4), dds.L2Certificate(), num_classes=2)
    options = {"sigma0": 0.12, "seed": 0, "ids": range(6)}
    found = dds.search_sigma(smoothed, torch.zeros(6, 2), sigma_grid=[0.05, 0.5, 0.2], **options)  # type: ignore[arg-type]
    assert set(found.sigma.tolist()) <= {0.05, 0.2, 0.5}
    assert (found.sigma == 0.2).mean() > 0.5


def test_a_narrow_range_works(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    found = dds.search_sigma(linear, pixels, sigma0=0.25, sigma_min=0.249, sigma_max=0.26, seed=0)
    assert ((found.sigma >= 0.249) & (found.sigma <= 0.26)).all()


def test_a_search_is_an_array_of_sigmas(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    found = dds.search_sigma(linear, pixels, sigma0=0.25, seed=0)
    assert len(found) == 12
    np.testing.assert_array_equal(np.asarray(found), found.sigma)
    np.testing.assert_array_equal(linear.certify(pixels, found, n=100, seed=0).sigma, found.sigma)
    assert np.asarray(found, dtype=np.float32).dtype == np.float32


def test_progress_matches_the_forwards(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    seen: list[int] = []
    found = dds.search_sigma(linear, pixels, sigma0=0.25, seed=0, progress=seen.append)
    assert sum(seen) == found.forwards * 12


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sigma0": 0.0}, SigmaError),
        ({"sigma0": -1.0}, SigmaError),
        ({"sigma0": math.nan}, SigmaError),
        ({"sigma0": 0.25, "sigma_min": 0.0}, SigmaError),
        ({"sigma0": 0.25, "sigma_max": math.inf}, SigmaError),
        ({"sigma0": 0.25, "sigma_min": 0.5, "sigma_max": 0.1}, SigmaError),
        ({"sigma0": 0.25, "sigma_min": 0.5}, InputError),
        ({"sigma0": 0.25, "alpha": 0.0}, InputError),
        ({"sigma0": 0.25, "seed": -1}, InputError),
        ({"sigma0": 0.25, "ids": [0] * 12}, InputError),
    ],
)
def test_bad_options(
    linear: dds.SmoothedClassifier, pixels: torch.Tensor, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"expected|outside|distinct"):
        dds.search_sigma(linear, pixels, **options)  # type: ignore[arg-type]


class Curve(torch.nn.Module):
    """Class 1 near the input and in a far shell, class 0 elsewhere: as a function of sigma its score has two humps."""

    def __init__(self, inner: float, start: float, stop: float) -> None:
        super().__init__()
        self.inner, self.start, self.stop = inner, start, stop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = (x.flatten(1) - 0.5).norm(dim=1)
        one = ((r < self.inner) | ((r > self.start) & (r < self.stop))).float()
        return torch.stack((1 - one, one), 1)


def test_of_two_maxima_the_larger_is_found() -> None:
    """With 64 coordinates the norm of the noise is about 8 sigma: one hump at .05, the larger at .3."""
    smoothed = dds.SmoothedClassifier(Curve(0.8, 1.6, 3.6), dds.L2Certificate(), num_classes=2)
    x = torch.full((6, 64), 128 / 255)
    found = dds.search_sigma(smoothed, x, sigma0=0.06, sigma_min=0.03, sigma_max=0.8, seed=0, ids=range(6))
    assert (found.anchor == 1).all()
    assert ((found.sigma > 0.25) & (found.sigma < 0.45)).all(), found.sigma


def test_an_input_that_abstains_at_sigma0_gets_a_smaller_sigma() -> None:
    """At sigma0 the classes are split between three; close to the input one of them is certain."""

    class Islands(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            near = ((x.flatten(1) - 0.5).norm(dim=1) < 0.8).float()
            side = (x.flatten(1)[:, 0] > 0.5).float()
            return torch.stack((2 * near, (1 - near) * side, (1 - near) * (1 - side)), 1)

    smoothed = dds.SmoothedClassifier(Islands(), dds.L2Certificate(), num_classes=3)
    x = torch.full((4, 64), 128 / 255)
    at_start = smoothed.certify(x, 0.3, n0=100, n=2000, seed=1, ids=range(4))
    assert at_start.abstained.all()
    found = dds.search_sigma(smoothed, x, sigma0=0.3, sigma_min=0.03, sigma_max=1.0, seed=0, ids=range(4))
    result = smoothed.certify(x, found, n0=100, n=2000, seed=2, ids=range(4))
    assert (result.prediction == 0).all()
    assert (found.sigma < 0.12).all()


def test_a_finite_set_gives_its_own_members_and_the_best_of_them() -> None:
    smoothed = dds.SmoothedClassifier(Curve(0.8, 9.0, 9.1), dds.L2Certificate(), num_classes=2)
    x = torch.full((4, 64), 128 / 255)
    found = dds.search_sigma(smoothed, x, sigma0=0.06, sigma_grid=[0.02, 0.08, 0.5], seed=0, ids=range(4))
    assert found.sigma.tolist() == [0.08] * 4
    assert not found.at_border.any()
