"""Are certificates true? Linear classifiers, whose class probabilities and distances are closed-form.

For ``f(x) = [w.x > t]`` and noise of a symmetric law, the smoothed classifier answers 1 exactly where ``w.x > t``, so
its true distance to another answer is that to the plane: ``|w.x - t| / norm2(w)`` in L2, ``|w.x - t| / max|w|`` in L1.
Both theorems are tight here: a radius is too large exactly when the lower bound exceeds the true pA.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import ddsmoothing as dds
from ddsmoothing.noise import Gaussian, GridBlock, grid_table
from reference import Half, is_valid, violations_allowed

R = 4000
ALPHA = 0.05
SIGMA = 0.25
THRESHOLD = 100.5 / 255
SEED = 11  # fixed: each test is one fixed draw of all repetitions


def on_grid() -> torch.Tensor:
    """R inputs with pA from below .6 to above .95, on the 8-bit grid, on both sides of the plane."""
    x = torch.full((R, 3), 30, dtype=torch.uint8)
    offsets = torch.tensor([-100, -70, -50, -35, -20, -10, 11, 21, 36, 51, 71, 101])
    x[:, 0] = (100 + offsets[torch.arange(R) % len(offsets)]).to(torch.uint8)
    return x


def off_grid(w: torch.Tensor) -> torch.Tensor:
    """As above for a plane of any direction, off the grid."""
    x = torch.full((R, len(w)), 0.3123, dtype=torch.float64)
    margins = torch.linspace(-0.4, 0.4, 22, dtype=torch.float64)[torch.arange(R) % 22]
    return x + ((margins + THRESHOLD - x @ w) / w.square().sum())[:, None] * w


def failures(result: dds.Certification, radius: np.ndarray, margin: np.ndarray, dual: float) -> np.ndarray:
    """Where a claim is false: another class than the smoothed classifier's, or a radius beyond the plane."""
    wrong = result.prediction != (margin > 0)
    return (radius > 0) & (wrong | (radius > np.abs(margin) / dual))


def certify(half: Half, x: torch.Tensor, certificate: dds.Certificate, **options: object) -> dds.Certification:
    vote = "plurality" if options.get("bound") == "two-class" else "pairwise"
    smoothed = dds.SmoothedClassifier(
        half, certificate, num_classes=half.num_classes, block_size=4096, vote=vote, any_range=True
    )
    options = {"n0": 25, "n": 200, "alpha": ALPHA, "seed": SEED, "ids": range(R)} | options
    return smoothed.certify(x, SIGMA, **options)  # type: ignore[arg-type]


CASES = {
    "l2 grid": (dds.L2Certificate(), [1.0, 0.0, 0.0], True),
    "l2 float": (dds.L2Certificate(), [0.6, -1.0, 0.3, 0.2], False),
    "l1 grid": (dds.L1Certificate(), [1.0, 0.0, 0.0], True),
    "l1 float": (dds.L1Certificate(), [1.0, 0.0, 0.0], False),
    "l1 oblique": (dds.L1Certificate(), [1.0, 0.5, -0.25], False),
}


def probability(certificate: dds.Certificate, w: list[float], margin: np.ndarray) -> np.ndarray:
    """The true pA of the right class; for a sum of several uniform variables by a fine exact-midpoint convolution."""
    size = np.abs(margin)
    if certificate.norm == "l2":
        return np.asarray(norm.cdf(size / (SIGMA * math.hypot(*w))))
    lam = math.sqrt(3) * SIGMA
    fine = lam * (2 * (np.arange(200) + 0.5) / 200 - 1)
    total = np.zeros(1)
    for part in (part for part in w if part):
        total = (total[:, None] + part * fine[None, :]).ravel()
    total.sort()
    return np.searchsorted(total, size) / len(total)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bound", ["one-class", "two-class"])
def test_certificates_are_valid_and_not_vacuous(name: str, bound: str) -> None:
    certificate, w, grid = CASES[name]
    weights = torch.tensor(w, dtype=torch.float64)
    x = on_grid() if grid else off_grid(weights)
    margin = ((x.double() / 255 if grid else x) @ weights - THRESHOLD).numpy()
    result = certify(Half(w, THRESHOLD), x, certificate, bound=bound)
    assert result.noise == ("grid" if grid else "float",) * R
    dual = float(weights.norm()) if certificate.norm == "l2" else float(weights.abs().max())
    assert is_valid(failures(result, result.radius, margin, dual), ALPHA)
    likely = probability(certificate, w, margin) >= 0.7
    assert likely.sum() > R / 3
    assert (result.radius > 0)[likely].mean() >= 0.8


@pytest.mark.parametrize("name", ["l2 grid", "l1 grid", "l2 float", "l1 oblique"])
def test_a_plug_in_bound_is_rejected(name: str) -> None:
    """The same verdict on the radius of k/n itself, without confidence."""
    certificate, w, grid = CASES[name]
    weights = torch.tensor(w, dtype=torch.float64)
    x = on_grid() if grid else off_grid(weights)
    margin = ((x.double() / 255 if grid else x) @ weights - THRESHOLD).numpy()
    result = certify(Half(w, THRESHOLD), x, certificate)
    share = np.take_along_axis(result.counts, result.top[:, None], 1)[:, 0] / 200
    radius = np.maximum(0.0, certificate.estimate(result.sigma, share.clip(0, 1 - 1e-9)))
    dual = float(weights.norm()) if certificate.norm == "l2" else float(weights.abs().max())
    assert not is_valid(failures(result, radius, margin, dual), ALPHA)


def test_choosing_the_class_on_the_estimation_samples_is_rejected() -> None:
    """At pA = pB = 1/2 the winner of the estimation samples gets a false certificate at twice alpha."""
    x = torch.full((R, 3), THRESHOLD, dtype=torch.float64)
    result = certify(Half([1.0, 0.0, 0.0], THRESHOLD), x, dds.L2Certificate())
    fair = result.radius > 0  # any certificate is false: the input lies on the boundary
    assert is_valid(fair, ALPHA)
    from ddsmoothing.bounds import clopper_pearson_lower

    peeked = np.array([clopper_pearson_lower(int(c.max()), 200, ALPHA) > 0.5 for c in result.counts])
    assert not is_valid(peeked, ALPHA)


def test_the_verdict_refuses_a_vacuous_bound() -> None:
    assert not is_valid(np.zeros(R, dtype=bool), ALPHA)
    assert R * ALPHA < violations_allowed(R, ALPHA) < 1.5 * R * ALPHA


def test_smoothed_predictions_are_valid() -> None:
    """PREDICT errs with probability at most alpha; close to the boundary it mostly abstains."""
    x = torch.full((R, 3), 30, dtype=torch.uint8)
    x[:, 0] = 101  # half a pixel inside class 1
    smoothed = dds.SmoothedClassifier(Half([1.0, 0.0, 0.0], THRESHOLD), dds.L2Certificate(), num_classes=2)
    answer = smoothed.predict(x, SIGMA, n=200, alpha=ALPHA, seed=SEED, ids=range(R))
    assert is_valid(answer.prediction == 0, ALPHA / 2)
    assert answer.abstained.mean() > 0.9


class MantissaReader(torch.nn.Module):
    """Class 1 where the input is a multiple of 2^-55: it reads what float addition did to the noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x[:, 0].double() * 2.0**55
        return torch.nn.functional.one_hot((scaled == scaled.round()).long(), 2).double()


def test_float_noise_leaks_the_input() -> None:
    """Around .25 every sum of float64 numbers is a multiple of 2^-55, around 0 most are not: a false certificate."""
    smoothed = dds.SmoothedClassifier(MantissaReader(), dds.L2Certificate(), num_classes=2)
    x = torch.tensor([[0.25], [1e-9]], dtype=torch.float64)
    certified = smoothed.certify(x[:1], 0.08, n=10_000, seed=SEED)
    assert certified.noise == ("float",)
    assert certified.prediction.tolist() == [1]
    assert certified.radius[0] > 0.25 > float(x[0, 0] - x[1, 0])
    assert smoothed.predict(x[1:], 0.08, n=10_000, seed=SEED).prediction.tolist() == [0]  # inside the ball


def test_grid_noise_leaks_nothing() -> None:
    """The same reader on 8-bit inputs: no certified ball holds a grid point with another answer."""
    smoothed = dds.SmoothedClassifier(MantissaReader(), dds.L2Certificate(), num_classes=2)
    x = torch.arange(0, 256, 1, dtype=torch.float64)[:, None] / 255
    certified = smoothed.certify(x, 0.08, n=2000, alpha=1e-6, seed=SEED, ids=range(256))
    answers = smoothed.predict(x, 0.08, n=2000, alpha=1e-6, seed=SEED, ids=range(256)).prediction
    assert set(certified.noise) == {"grid"}
    assert not certified.abstained.all()
    for i in range(256):
        inside = answers[(np.abs(x[:, 0].numpy() - x[i, 0].item()) < certified.radius[i]) & (answers >= 0)]
        assert (inside == certified.prediction[i]).all()


def test_grid_samples_of_a_reader_are_a_function_of_the_integers() -> None:
    """What the reader sees of X + K does not tell X: moving X and K apart by the same amount changes no sample."""
    noise = np.empty((5000, 1), dtype=np.int16)
    GridBlock(grid_table(Gaussian.name, 0.08), (SEED, 0, 1, 0), 1).fill(noise)
    by_x = {}
    for start in (0, 64):
        samples = torch.from_numpy((noise + start).astype(np.float64)) / 255
        answers = MantissaReader()(samples).argmax(1).tolist()
        for integer, answer in zip((noise + start).ravel().tolist(), answers, strict=True):
            assert by_x.setdefault(integer, answer) == answer
    assert len(by_x) > 64
