"""A radius that no order of queries can take away, for sigmas chosen from a finite set.

If one class A has radius at least r for EVERY sigma of the set, then every classifier that chooses its sigma from the
set, with a memory or without, answers A (or abstains) within r, whatever was asked before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.bounds import check_alpha, check_feasible, clopper_pearson_lower, top_two_bounds
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError, StoreError
from ddsmoothing.evidence import ABSTAIN, total_variation
from ddsmoothing.memory.store import Store
from ddsmoothing.models import model_identity
from ddsmoothing.runs import Run
from ddsmoothing.streams import Stream, checked_seed

SIGMA_BLOCKS = 2**32  # noise blocks set aside for each sigma, so that no two share noise


def grid_of(run: Run) -> tuple[float, ...]:
    """The finite set of sigmas that a run chose from; InputError for any other run."""
    grid = run.header.policy.get("sigma_grid")
    if not grid:
        raise InputError(
            f"{run.path} did not choose its sigmas from a finite set; certify with --sigma-grid to have a floor."
        )
    return tuple(float(sigma) for sigma in grid)


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
) -> NDArray[np.float64]:
    """``max(0, min over S of rho_s)`` for each row's class, one fresh estimation of n samples at every sigma of S.

    Each is made at alpha/|S|. The class is the run's, chosen on other samples.

    Args:
        n: samples at each sigma.   seed: of the fresh noise, not the run's own.   progress: samples done.
    Returns: ``(B,)``, 0 where the run abstained; errs low, false with probability at most the run's alpha.
    Raises: InputError where the run had no finite set of sigmas or is not of this model; InfeasibleError.
    """
    grid, header = grid_of(run), run.header
    if header.model.sha256 is not None and model_identity(smoothed.model) != f"sha256:{header.model.sha256}":
        raise InputError(f"this is not the model of {run.path}.")
    if smoothed.certificate.norm != header.norm:
        raise InputError(f"{run.path} is of norm {header.norm}, got {smoothed.certificate.norm}.")
    share = check_alpha(header.alpha) / len(grid)
    check_feasible(n, share)
    seed = checked_seed(seed)
    if seed == header.seed:
        raise InputError(f"seed {seed} is the run's own, whose noise chose and counted already; give another.")
    floors = np.zeros(len(run))
    for position, row in enumerate(run.rows):
        if row.prediction == ABSTAIN:
            continue
        batch = smoothed.prepare(data[[row.id]][0], [row.id])
        requests = [
            Request(row=0, sigma=sigma, stream=Stream.CERTIFY, n=n, first_block=k * SIGMA_BLOCKS)
            for k, sigma in enumerate(grid)
        ]
        counts = smoothed.count(batch, requests, seed, progress)[:, row.prediction]
        radii = []
        for sigma, count in zip(grid, counts.tolist(), strict=True):
            tv = float(total_variation(smoothed.certificate, sigma, batch.d, batch.levels) if batch.on_grid[0] else 0.0)
            bounds = top_two_bounds(clopper_pearson_lower(count, n, share), 0, n, share, "one-class", tv)
            radii.append(smoothed.certificate.radius(sigma, *bounds))
        floors[position] = max(0.0, min(radii))
    return floors
