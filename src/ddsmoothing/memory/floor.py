"""A radius that no order of queries can take away, for sigmas chosen from a finite set.

If one class A has radius at least r for EVERY sigma of the set, then every classifier that chooses its sigma from the
set, with a memory or without, answers A (or abstains) within r, whatever was asked before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ddsmoothing.bounds import check_alpha, check_feasible
from ddsmoothing.claims import ABSTAIN, Measurement, measured, rule_for
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError, StoreError
from ddsmoothing.memory.store import Store
from ddsmoothing.models import model_hash
from ddsmoothing.runs import ResultRow, Run
from ddsmoothing.streams import Blocks, Stream, checked_seed


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A radius that holds in any order, and the counts at every sigma that it follows from."""

    radius: float
    measurements: tuple[Measurement, ...] = ()


NO_FLOOR = Floor(radius=0.0)


def grid_of(run: Run) -> tuple[float, ...]:
    """The finite set of sigmas that a run chose from; InputError for any other run."""
    grid = run.header.policy.sigma_grid
    if not grid:
        raise InputError(
            f"{run.path} did not choose its sigmas from a finite set; certify with --sigma-grid to have a floor."
        )
    return grid


def check_sigmas(store: Store, grid: tuple[float, ...]) -> None:
    """Raise StoreError if a region was certified at a sigma outside the set."""
    for region in store.regions():
        if region.sigma not in grid:
            raise StoreError(f"{store.name}: region {region.number} has sigma {region.sigma:g}, not one of {grid}.")


def order_proof_floor(
    run: Run,
    smoothed: SmoothedClassifier,
    data: Dataset,
    *,
    n: int = 10_000,
    seed: int | None = None,
    progress: Progress | None = None,
) -> tuple[Floor, ...]:
    """``max(0, min over S of R_s)`` for each row's class, one fresh estimation of n samples at every sigma of S.

    Each gets the whole alpha: a floor that is too high means that the bound at the truly smallest scale failed, and
    that scale was fixed before the samples. The class is the run's, chosen on other samples.

    Args:
        n: samples at each sigma.   seed: of the fresh noise, not the run's own.   progress: samples done.
    Returns: A floor for each row, 0 where the run abstained; errs low, false with probability at most the run's alpha.
    Raises: InputError where the run had no finite set of sigmas or is not of this model; InfeasibleError.
    """
    grid, header = grid_of(run), run.header
    if header.model.sha256 is not None and model_hash(smoothed.model) != header.model.sha256:
        raise InputError(f"this is not the model of {run.path}.")
    if (smoothed.certificate.norm, smoothed.vote) != (header.norm, header.vote):
        raise InputError(
            f"{run.path} is of norm {header.norm} and vote {header.vote}, got {smoothed.certificate.norm} and "
            f"{smoothed.vote}."
        )
    if header.rule.offsets is not None or smoothed.offsets is not None:
        raise InputError("a floor is of a vote without class offsets.")
    check_feasible(n, check_alpha(header.alpha))
    seed = checked_seed(seed)
    if seed == header.seed:
        raise InputError(f"seed {seed} is the run's own, whose noise chose and counted already; give another.")
    return tuple(
        NO_FLOOR if row.prediction == ABSTAIN else _floor(row, smoothed, data, grid, n, header.alpha, seed, progress)
        for row in run.rows
    )


def _floor(
    row: ResultRow,
    smoothed: SmoothedClassifier,
    data: Dataset,
    grid: tuple[float, ...],
    n: int,
    alpha: float,
    seed: int,
    progress: Progress | None,
) -> Floor:
    batch, rule = smoothed.prepare(data[[row.id]][0], [row.id]), rule_for(smoothed.vote)
    top, tally = row.prediction, rule.tally(row.prediction)
    requests = [
        Request(
            row=0,
            sigma=sigma,
            stream=Stream.CERTIFY,
            n=n,
            first_block=Blocks(batch.d).take(Stream.CERTIFY, n, slot=k),
            tally=tally.kind,
            anchor=tally.anchor,
        )
        for k, sigma in enumerate(grid)
    ]
    found = []
    for k, (sigma, counts) in enumerate(zip(grid, smoothed.count(batch, requests, seed, progress), strict=True)):
        one = measured("certify", sigma, tally, counts, slot=k)
        found.append(replace(one, tv=smoothed.tv(batch, 0, sigma), looks=(rule.look(one, top, alpha),)))
    radius = min(rule.claim_of(top, one, smoothed.certificate, alpha, row.moved).radius for one in found)
    return Floor(radius=radius, measurements=tuple(found))
