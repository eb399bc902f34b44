from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest, norm

import ddsmoothing as dds
from ddsmoothing.claims import Look
from ddsmoothing.errors import InfeasibleError, InputError, ModelError, ShapeError, SigmaError
from ddsmoothing.noise import grid_table
from reference import Half

SIGMA = 0.25


def test_a_certification_in_full(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    result = linear.certify(pixels, SIGMA, n0=50, n=2000, alpha=0.001, seed=0)
    assert len(result) == 12
    assert result.n0_counts.sum(1).tolist() == [50] * 12
    assert result.counts.sum(1).tolist() == [2000] * 12
    assert result.samples.tolist() == [2050] * 12
    assert result.sigma.tolist() == [SIGMA] * 12
    assert (result.sampler, result.bound, result.level, result.norm) == ("exact", "one-class", "pointwise", "l2")
    assert result.prediction[[0, -1]].tolist() == [0, 1]
    assert (result.radius[[0, -1]] > 0).all()
    for name in ("prediction", "radius", "p_lower", "p_upper", "abstained", "sigma"):
        assert isinstance(getattr(result, name), np.ndarray)
        assert getattr(result, name).shape == (12,)


@pytest.mark.parametrize("norm_name", ["l2", "l1"])
@pytest.mark.parametrize("bound", ["one-class", "two-class"])
def test_claims_follow_from_the_evidence(half: Half, pixels: torch.Tensor, norm_name: str, bound: str) -> None:
    certificate = dds.L2Certificate() if norm_name == "l2" else dds.L1Certificate()
    smoothed = dds.SmoothedClassifier(half, certificate, num_classes=2, vote="plurality")
    result = smoothed.certify(pixels, np.linspace(0.2, 0.4, 12), n0=50, n=1000, alpha=0.01, bound=bound, seed=0)
    share, other_share = (0.01, 0.0) if bound == "one-class" else (0.009, 0.001)
    for i in range(12):
        top = result.n0_counts[i].argmax()
        k, others = result.counts[i, top], np.delete(result.counts[i], top).max()
        scale = float(certificate.noise.scale(result.sigma[i]))
        tv = 3 * grid_table(certificate.noise.name, scale).tau
        p = (beta.ppf(share, k, 1001 - k) if k else 0.0) - tv
        q = 1 - p if bound == "one-class" else min(1 - p, beta.ppf(1 - other_share, others + 1, 1000 - others) + tv)
        assert result.p_lower[i] == pytest.approx(max(p, 0), abs=1e-11)
        assert result.p_upper[i] == pytest.approx(q, abs=1e-11)
        assert result.abstained[i] == (result.p_lower[i] <= result.p_upper[i])
        assert result.prediction[i] == (dds.ABSTAIN if result.abstained[i] else top)
        assert result.reason[i] == ("abstained" if result.abstained[i] else "certified")
        if norm_name == "l2":
            radius = result.sigma[i] / 2 * (norm.ppf(p) - norm.ppf(q)) if p > 0 else 0.0
        else:
            radius = math.sqrt(3) * result.sigma[i] * (p - q)
        assert result.radius[i] == pytest.approx(max(radius, 0.0), abs=1e-9)
        assert result.radius[i] <= max(radius, 0.0) + 1e-15


def test_changed_evidence_changes_the_claims(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    result = linear.certify(pixels, SIGMA, n=1000, seed=0)
    look = Look(1000, (500, 500), 0.001)
    even = dataclasses.replace(result, fresh=tuple(dataclasses.replace(one, looks=(look,)) for one in result.fresh))
    assert even.abstained.all()
    assert (even.prediction == dds.ABSTAIN).all()
    assert (even.radius == 0).all()


def test_results_are_frozen(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    result = linear.certify(pixels, SIGMA, n=100, seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.alpha = 0.5  # type: ignore[misc]


def test_the_boundary_abstains(half: Half) -> None:
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
    x = torch.full((1, 3), half.t, dtype=torch.float64)
    result = smoothed.certify(x, SIGMA, n=1000, seed=1)
    assert (result.prediction.tolist(), result.radius.tolist()) == ([dds.ABSTAIN], [0.0])
    assert smoothed.predict(x, SIGMA, seed=1).prediction.tolist() == [dds.ABSTAIN]


def test_the_largest_radius(linear: dds.SmoothedClassifier) -> None:
    """``sigma * Phi^-1(alpha^(1/n))``: 2.46 sigma for n = 1000 at alpha = .001."""
    result = linear.certify(torch.full((1, 3), 255, dtype=torch.uint8), 0.02, n=1000, seed=0)
    assert result.radius[0] == pytest.approx(0.02 * norm.ppf(0.001 ** (1 / 1000)), rel=1e-9)
    assert 2.46 < result.radius[0] / 0.02 <= norm.ppf(0.001 ** (1 / 1000))


def test_two_class_certifies_below_one_half() -> None:
    """Mass .45 on class 0, the rest spread over nine classes: only the two-class bound can certify."""

    def spread(x: torch.Tensor) -> torch.Tensor:
        step = ((x[:, 1] * 255).round().long() % 20).clamp(min=9) - 9
        return torch.nn.functional.one_hot(torch.where(step < 2, 0, step), 11).float()

    smoothed = dds.SmoothedClassifier(spread, dds.L2Certificate(), num_classes=11, vote="plurality")
    x = torch.zeros(1, 2, dtype=torch.uint8)
    one, two = (smoothed.certify(x, 1.0, n=4000, bound=b, seed=0) for b in ("one-class", "two-class"))
    np.testing.assert_array_equal(one.counts, two.counts)
    p = two.counts[0, 0] / 4000
    if p < 0.5:
        assert one.abstained.tolist() == [True]
    assert two.radius[0] > one.radius[0]
    assert two.prediction.tolist() == [0]


def test_selection_and_estimation_use_different_noise(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    result = linear.certify(pixels, SIGMA, n0=500, n=500, seed=0)
    predicted = linear.predict(pixels, SIGMA, n=500, seed=0)
    assert not np.array_equal(result.n0_counts, result.counts)
    assert not np.array_equal(predicted.counts, result.counts)
    assert not np.array_equal(predicted.counts, result.n0_counts)


def test_one_sigma_an_input_equals_one_call_an_input(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    sigma = np.linspace(0.1, 0.5, 12)
    together = linear.certify(pixels, sigma, n=300, seed=5)
    for i in range(12):
        alone = linear.certify(pixels[i : i + 1], float(sigma[i]), n=300, seed=5)
        assert alone.radius[0] == together.radius[i]
        np.testing.assert_array_equal(alone.counts[0], together.counts[i])


@pytest.mark.parametrize("kind", [float, np.float32, lambda s: torch.tensor(s), lambda s: [s] * 12, lambda s: (s,)])
def test_sigma_in_any_form(linear: dds.SmoothedClassifier, pixels: torch.Tensor, kind: type) -> None:
    assert linear.certify(pixels, kind(SIGMA), n=100, seed=0).sigma.tolist() == [SIGMA] * 12


def test_same_seed_same_result(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    a, b, c = (linear.certify(pixels, SIGMA, n=500, seed=seed) for seed in (2**63 + 1, 2**63 + 1, 2**63 + 2))
    np.testing.assert_array_equal(a.counts, b.counts)
    assert not np.array_equal(a.counts, c.counts)


def test_no_seed_differs_and_is_recorded(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    a, b = (linear.certify(pixels, SIGMA, n=500) for _ in range(2))
    assert a.seed != b.seed
    np.testing.assert_array_equal(linear.certify(pixels, SIGMA, n=500, seed=a.seed).counts, a.counts)
    assert linear.predict(pixels, SIGMA, n=500).seed != linear.predict(pixels, SIGMA, n=500).seed


def test_ids_are_the_noise(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    x = pixels[[5, 5]]
    twice = linear.certify(x, SIGMA, n=500, seed=0)  # the same bytes in one call: keyed apart, so that they fail apart
    assert twice.ids[0] != twice.ids[1]
    assert not np.array_equal(twice.counts[0], twice.counts[1])
    again = linear.certify(x[1:], SIGMA, n=500, seed=0)  # in two calls: the same id, the same noise
    np.testing.assert_array_equal(twice.counts[0], again.counts[0])
    other = linear.certify(x, SIGMA, n=500, seed=0, ids=[1, 2**64 - 1])
    assert not np.array_equal(other.counts[0], other.counts[1])
    assert other.ids == (1, 2**64 - 1)
    assert linear.certify(x, SIGMA, n=500, seed=0, ids=np.array([3, 4])).ids == (3, 4)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0] * 12, "not distinct"),
        (range(11), "got 11 ids for 12 inputs"),
        (range(13), "got 13 ids"),
        ([-1, *range(11)], "got|expected|is -1"),
        ([2**64, *range(11)], r"0 to 2\^64 - 1"),
        ([0.5, *range(11)], "expected an integer"),
        ([True, *range(2, 13)], "expected an integer"),
    ],
)
def test_bad_ids(linear: dds.SmoothedClassifier, pixels: torch.Tensor, ids: object, message: str) -> None:
    for call in (linear.certify, linear.predict):
        with pytest.raises(InputError, match=message):
            call(pixels, SIGMA, n=100, ids=ids, seed=0)  # type: ignore[operator]


@pytest.mark.parametrize("sigma", [0.0, -0.25, math.nan, math.inf, -math.inf, 64.0, [0.25] * 11 + [math.nan]])
def test_bad_sigma(linear: dds.SmoothedClassifier, pixels: torch.Tensor, sigma: object) -> None:
    for call in (linear.certify, linear.predict):
        with pytest.raises(SigmaError, match="expected a positive finite number"):
            call(pixels, sigma, n=100)  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(11,), (12, 1), (0,), (1, 12)])
def test_sigma_of_the_wrong_shape(linear: dds.SmoothedClassifier, pixels: torch.Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="sigma of shape"):
        linear.certify(pixels, np.full(shape, 0.25), n=100)


@pytest.mark.parametrize(
    "options",
    [
        *({"n": 0}, {"n": -5}, {"n0": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"alpha": 2}, {"alpha": math.nan}),
        *({"seed": -1}, {"seed": 2**64}, {"seed": 0.5}, {"bound": "three-class"}),
    ],
)
def test_bad_options(linear: dds.SmoothedClassifier, pixels: torch.Tensor, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        linear.certify(pixels, SIGMA, **({"n": 100} | options))  # type: ignore[arg-type]


def test_infeasible_is_refused_before_the_first_sample(pixels: torch.Tensor) -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("sampled")

    smoothed = dds.SmoothedClassifier(never, dds.L2Certificate(), num_classes=2)
    with pytest.raises(InfeasibleError, match="Use n >= 10"):
        smoothed.certify(pixels, SIGMA, n=9, alpha=0.001)
    with pytest.raises(InfeasibleError, match="Use n >= 10"):
        smoothed.predict(pixels, SIGMA, n=9, alpha=0.001)
    plurality = dds.SmoothedClassifier(never, dds.L2Certificate(), num_classes=2, vote="plurality")
    with pytest.raises(InfeasibleError, match="Use n >= 11"):
        plurality.predict(pixels, SIGMA, n=10, alpha=0.001)
    with pytest.raises(InputError):
        smoothed.certify(pixels, -1.0, n=100)


def test_the_smallest_n_of_predict_can_answer(linear: dds.SmoothedClassifier) -> None:
    x = torch.full((1, 3), 255, dtype=torch.uint8)
    assert linear.predict(x, 0.02, n=11, alpha=0.001, seed=0).prediction.tolist() == [1]


def test_predict_is_the_binomial_test(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    found = linear.predict(pixels, SIGMA, n=40, alpha=0.05, seed=3)
    for counts, answer in zip(found.counts, found.prediction, strict=True):
        sure = binomtest(int(counts.max()), 40, 0.5).pvalue <= 0.05
        assert answer == (counts.argmax() if sure else dds.ABSTAIN)
    assert 0 < found.abstained.sum() < 12
    np.testing.assert_array_equal(found.abstained, found.prediction == dds.ABSTAIN)
    assert not hasattr(found, "radius")


def test_a_wrong_number_of_classes_is_a_model_error(half: Half, pixels: torch.Tensor) -> None:
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=3)
    with pytest.raises(ModelError, match="is num_classes=3 right"):
        smoothed.certify(pixels, SIGMA, n=100)


@pytest.mark.parametrize(
    ("model", "certificate", "options"),
    [
        ("a string", dds.L2Certificate(), {"num_classes": 2}),
        (torch.nn.Identity(), 3, {"num_classes": 2}),
        (torch.nn.Identity(), dds.L2Certificate(), {"num_classes": 1}),
        (torch.nn.Identity(), dds.L2Certificate(), {"num_classes": 2, "block_size": 0}),
    ],
)
def test_a_bad_smoothed_classifier(model: object, certificate: object, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        dds.SmoothedClassifier(model, certificate, **options)  # type: ignore[arg-type]


def test_l1_radii_are_those_of_lambda(half: Half) -> None:
    """All samples agree: ``2 lambda (alpha^(1/n) - 1/2)``, lambda = sqrt(3) sigma."""
    smoothed = dds.SmoothedClassifier(half, dds.L1Certificate(), num_classes=2)
    result = smoothed.certify(torch.full((1, 3), 255, dtype=torch.uint8), 0.1, n=1000, seed=0)
    assert result.scale[0] == pytest.approx(math.sqrt(3) * 0.1, rel=1e-15)
    assert result.radius[0] == pytest.approx(2 * math.sqrt(3) * 0.1 * (0.001 ** (1 / 1000) - 0.5), rel=1e-9)


@pytest.mark.parametrize("certificate", [dds.L2Certificate(), dds.L1Certificate()], ids=["l2", "l1"])
def test_snapping_gives_exact_noise_and_takes_the_distance_off(half: Half, certificate: dds.Certificate) -> None:
    grid = torch.tensor([[200, 7, 7], [160, 7, 7], [120, 7, 7]]) / 255
    off = grid + torch.tensor([0.3, -0.2, 0.1]) / 255
    smoothed = dds.SmoothedClassifier(half, certificate, num_classes=2, snap=True)
    plain = dds.SmoothedClassifier(half, certificate, num_classes=2)
    moved, exact = (
        one.certify(x, 0.25, n0=50, n=2000, seed=0, ids=[1, 2, 3]) for one, x in ((smoothed, off), (plain, grid))
    )
    assert set(moved.noise) == {"grid"}
    assert set(plain.certify(off, 0.25, n0=5, n=50, seed=0).noise) == {"float"}
    np.testing.assert_array_equal(moved.counts, exact.counts)
    size = (off - grid).double().norm(p=2 if certificate.norm == "l2" else 1, dim=1).numpy()
    assert (moved.moved >= size * (1 - 1e-6)).all()
    np.testing.assert_allclose(moved.radius, np.maximum(0, exact.radius - size), atol=1e-6)
    assert (moved.radius <= np.maximum(0, exact.radius - size * (1 - 1e-6))).all()
    np.testing.assert_array_equal(
        smoothed.certify(grid, 0.25, n0=50, n=2000, seed=0, ids=[1, 2, 3]).radius, exact.radius
    )


def test_an_input_moved_further_than_its_radius_is_not_certified() -> None:
    near = Half([1.0, 0.0, 0.0], 100.5 / 255)
    x = torch.tensor([[101.49, 7.49, 7.49]]) / 255
    smoothed = dds.SmoothedClassifier(near, dds.L2Certificate(), num_classes=2, snap=True)
    result = smoothed.certify(x, 0.002, n0=50, n=5000, seed=0)
    assert result.p_lower[0] > 0.5
    assert result.moved[0] > 0.002
    assert (result.prediction[0], result.radius[0], result.reason) == (-1, 0.0, ("abstained",))


def test_only_inputs_between_0_and_1_can_be_snapped(half: Half) -> None:
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, snap=True, any_range=True)
    with pytest.raises(InputError, match="snap"):
        smoothed.certify(torch.full((1, 3), 1.5), 0.25, n0=5, n=50)
