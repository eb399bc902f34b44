"""The forward-only search for the sigma with the largest certified radius.

It knows the smoothed classifier and no gradients. One scalar an input needs no back-propagation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import betaincinv

from ddsmoothing.bounds import check_alpha
from ddsmoothing.claims import Rule, Tally, rule_for
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.errors import InputError, SigmaError
from ddsmoothing.inputs import Batch, check_sigma
from ddsmoothing.models import trained_range
from ddsmoothing.plan import SearchPlan
from ddsmoothing.progress import Told, telling
from ddsmoothing.shown import Form, Stored, inputs_text, spread
from ddsmoothing.sigma.score import certified_scores, events, supports
from ddsmoothing.streams import Blocks, Stream, checked_seed

SETTLED = 0.001  # how sure the pilot must be that its class has more than half of the answers at sigma0


class SearchForm(Form):
    """What the JSON of a search holds."""

    sigma: tuple[Annotated[float, Field(gt=0.0)], ...]
    anchor: tuple[Annotated[int, Field(ge=0)], ...]
    at_border: tuple[bool, ...]
    score: tuple[float, ...]
    forwards: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    seconds: Annotated[float, Field(ge=0.0)]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SigmaSearch(Stored):
    """The sigma chosen for each of B inputs; usable wherever an array of sigmas is.

    Attributes:
        sigma: ``(B,)`` float64.
        anchor: ``(B,)`` the class whose radius was made large.
        at_border: ``(B,)`` True where the best sigma lies at an end of the range: a wider one may be better.
        score: ``(B,)`` estimated certified radius; an estimate, never a claim.
        forwards: samples an input.
        seed: of the noise.
        seconds: wall time of the whole batch.
    """

    _each: ClassVar = ("sigma", "anchor", "at_border", "score")
    _form: ClassVar = SearchForm
    _arrays: ClassVar = {"sigma": "float64", "anchor": "int64", "at_border": "bool", "score": "float64"}

    sigma: NDArray[np.float64]
    anchor: NDArray[np.int64]
    at_border: NDArray[np.bool_]
    score: NDArray[np.float64]
    forwards: int
    seed: int
    seconds: float

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.sigma, dtype=dtype)

    def _line(self) -> str:
        ends = int(self.at_border.sum())
        sigma = spread(self.sigma) + (f", {ends:,} at an end of the range" if ends else "")
        return f"SigmaSearch of {inputs_text(len(self))}: sigma {sigma}; {self.forwards:,} samples an input"

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in self._each}


def search_sigma(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    *,
    sigma0: float,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_grid: Sequence[float] | None = None,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    plan: SearchPlan | None = None,
    progress: Told = None,
) -> SigmaSearch:
    """Find for each input the sigma whose certified radius will be largest.

    The class is fixed first, by a pilot at sigma0; without that the search drifts to the class that pure noise gets.
    Then a log grid over [sigma_min, sigma_max] is narrowed round the best sigma while samples are added; all sigmas of
    a round see the same noise, scaled. Last a parabola in log sigma is fitted. The result is rounded to a fixed fine
    set of sigmas. No label is used and no claim is made.

    Args:
        smoothed: The classifier whose radius is to be large.
        x: ``(B, ...)`` as for ``certify``.
        sigma0: Where the class is fixed, such as the training sigma.
        sigma_min: Least sigma, default ``sigma0 / 4``, but not below those that the model says it was trained for
            (``sigma_range``).
        sigma_max: Largest sigma, default ``sigma0 * 4``, but not above those.
        sigma_grid: Search this finite set only, in place of a range; the result is one of its members.
        n: Samples of the certification to come, since they bound the radius that can be had.
        alpha: Of the certification to come.
        seed: As for ``certify``; the noise is of a stream of its own.
        ids: As for ``certify``.
        plan: How many samples are drawn where.
        progress: As for ``certify``.
    Raises:
        InputError: ShapeError and SigmaError among them.
        ModelError: The model does not keep its contract.
    References:
        The objective is that of Alfarra et al. 2022, arXiv:2012.04351, eq. 3, with a confidence bound in place of the
        mean softmax.
    """
    plan = plan or SearchPlan()
    check_alpha(alpha)
    seed, start = checked_seed(seed), time.perf_counter()
    batch, certificate = smoothed.prepare(x, ids), smoothed.certificate
    grid = search_grid(smoothed, sigma0, sigma_min, sigma_max, sigma_grid, plan.widths[0])
    forwards = plan.pilot + sum(min(w, len(grid)) * s for w, s in zip(plan.widths, plan.samples, strict=True))
    rule, rows = rule_for(smoothed.vote), np.arange(len(batch))[:, None]
    broad = rule.pilot_tally(smoothed.num_classes)  # while the class is not fixed
    drawn = np.zeros((len(batch), len(grid)))
    hits = np.zeros((len(batch), len(grid), smoothed.num_classes))  # of each event that the anchor's answer rests on
    score = np.zeros_like(drawn)
    with telling(progress, len(batch) * forwards, "choosing sigma") as told:
        counter = _Counter(smoothed, batch, seed, told)
        pilot = supports(broad.kind, counter.count(np.full((len(batch), 1), sigma0), plan.pilot, 0, broad))[:, 0]
        anchor = pilot.argmax(1)
        for level, (width, samples) in enumerate(zip(plan.widths, plan.samples, strict=True), start=1):
            width = min(width, len(grid))
            first = np.clip(score.argmax(1) - width // 2, 0, len(grid) - width)
            window = first[:, None] + np.arange(width)
            drawn[rows, window] += samples
            if level == 1:
                counts = counter.count(grid[window], samples, level, broad)
                all_hits = np.zeros_like(hits)
                all_hits[rows, window] = supports(broad.kind, counts)
                careful = certified_scores(
                    certificate, all_hits, drawn, grid, samples, 0.05
                )  # believes the few samples
                anchor = _anchor(careful, pilot, plan.pilot, grid <= max(sigma0, grid[0]))
                hits[rows, window] += events(broad.kind, counts, anchor)
            else:
                hits[rows, window] += counter.wins(grid[window], samples, level, rule, anchor)
            score = certified_scores(certificate, hits.min(2, keepdims=True), drawn, grid, n, alpha)[..., 0]
    if sigma_grid is None:
        sigma = certificate.noise.snap(_peak(score, drawn, grid, window)).clip(grid[0], grid[-1])
    else:
        sigma = grid[window[rows[:, 0], score[rows, window].argmax(1)]]
    return SigmaSearch(
        sigma=sigma,
        anchor=anchor,
        at_border=(sigma == grid[0]) | (sigma == grid[-1]),
        score=score.max(1),
        forwards=forwards,
        seed=seed,
        seconds=time.perf_counter() - start,
    )


class _Counter:
    """Counts of a whole window of sigmas for each input."""

    def __init__(self, smoothed: SmoothedClassifier, batch: Batch, seed: int, progress: Progress | None) -> None:
        self._smoothed, self._batch, self._seed, self._progress = smoothed, batch, seed, progress

    def count(self, sigma: NDArray[np.float64], n: int, level: int, tally: Tally) -> NDArray[np.int64]:
        """What is counted ``(B, W, ..)`` of n samples at each of the sigmas ``(B, W)``."""
        return self._count(sigma, n, level, [tally] * len(sigma))

    def wins(
        self, sigma: NDArray[np.float64], n: int, level: int, rule: Rule, anchor: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """``(B, W, K)`` how often each event happened that the answer ``anchor`` ``(B,)`` rests on."""
        tallies = [rule.tally(top) for top in anchor.tolist()]
        return events(tallies[0].kind, self._count(sigma, n, level, tallies), anchor)

    def _count(self, sigma: NDArray[np.float64], n: int, level: int, tallies: list[Tally]) -> NDArray[np.int64]:
        requests = [
            Request(
                row=row,
                sigma=float(s),
                stream=Stream.SEARCH,
                n=n,
                first_block=Blocks(self._batch.d).take(Stream.SEARCH, n, slot=level),  # the same for all sigmas
                tally=tally.kind,
                anchor=tally.anchor,
            )
            for row, (window, tally) in enumerate(zip(sigma, tallies, strict=True))
            for s in window
        ]
        counts = np.stack(self._smoothed.count(self._batch, requests, self._seed, self._progress))
        return counts.reshape(*sigma.shape, *counts.shape[1:])


def search_range(model: Any, sigma0: float, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The ends of the range as given, or a quarter and four times sigma0, but not beyond what the model is trained for.

    Beyond that range a network that is told sigma may answer anything; nothing false would be certified there, but
    certificates would be small.
    """
    least, largest = trained_range(model) or (0.0, np.inf)
    low = max(sigma0 / 4, least) if sigma_min is None else sigma_min
    high = min(sigma0 * 4, largest) if sigma_max is None else sigma_max
    return low, high


def search_grid(
    smoothed: SmoothedClassifier,
    sigma0: float,
    sigma_min: float | None,
    sigma_max: float | None,
    sigma_grid: Sequence[float] | None,
    size: int,
) -> NDArray[np.float64]:
    """The sigmas of the first round, ascending: a log grid over the range, or the finite set given."""
    check_sigma(sigma0, 1)
    if sigma_grid is not None:
        if sigma_min is not None or sigma_max is not None:
            raise InputError("sigma_grid is a finite set, expected no sigma_min and sigma_max with it.")
        grid = np.unique(np.asarray(sigma_grid, dtype=np.float64))
        return check_sigma(grid, len(grid))
    low, high = search_range(smoothed.model, sigma0, sigma_min, sigma_max)
    check_sigma([low, high], 2)
    if not low < high:
        raise SigmaError(f"sigma_min={low} and sigma_max={high}, expected sigma_min < sigma_max.")
    if not low <= sigma0 <= high:
        raise InputError(f"sigma0={sigma0} lies outside [{low}, {high}]; give sigma_min and sigma_max that contain it.")
    return np.unique(smoothed.certificate.noise.snap(np.geomspace(low, high, size)).clip(low, high))


def _anchor(
    scores: NDArray[np.float64], pilot: NDArray[np.int64], n: int, below: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The class to follow: the pilot's, or where sigma0 does not settle it, the best one at or below sigma0.

    A pilot ``(B, K)`` of n samples settles the class if a lower bound on its share, at level SETTLED, exceeds one half.
    Larger sigmas have no say, since there the class of pure noise may win. The scores are to be careful ones, so that
    of many small counts no lucky one is followed.
    """
    count = pilot.max(1)
    settled = betaincinv(count, n - count + 1, SETTLED) > 0.5
    return np.asarray(np.where(settled, pilot.argmax(1), scores[:, below].max(1).argmax(1)))


def _peak(
    scores: NDArray[np.float64], weights: NDArray[np.float64], grid: NDArray[np.float64], window: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The top of a weighted parabola in log sigma through each input's last window, or its best point."""
    peaks = []
    for score, weight, columns in zip(scores, weights, window, strict=True):
        u, y = np.log(grid[columns]), score[columns]
        peak = u[y.argmax()]
        if len(u) > 2:
            curve = np.polyfit(u - u.mean(), y, 2, w=np.sqrt(weight[columns]))
            if curve[0] < 0.0:
                peak = np.clip(u.mean() - curve[1] / (2.0 * curve[0]), u[0], u[-1])
        peaks.append(float(np.exp(peak)))
    return np.array(peaks)
