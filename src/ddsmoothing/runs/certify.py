"""One run: choose sigma, certify, and write each batch of rows as soon as it is there.

It is the only place where a sigma policy, a smoothed classifier and a run folder meet.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.bounds import check_feasible
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.models import model_hash
from ddsmoothing.runs.schema import DataIdentity, Header, ModelIdentity, Subset, rows_of
from ddsmoothing.runs.store import Run, RunWriter, load_run
from ddsmoothing.sampling import Progress
from ddsmoothing.sigma.search import SearchPlan, _grid, search_sigma
from ddsmoothing.smooth import SmoothedClassifier, check_count, check_sigma, checked_seed

GROUP_SAMPLES = 200_000  # samples between two moments at which rows reach the disk
GROUP_INPUTS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class SigmaPolicy:
    """Where each input's sigma comes from.

    Attributes:
        kind: ``fixed`` (one sigma), ``file`` (one for each input of the run, in order) or ``search``.
        sigma: the sigma or sigmas of the first two.   sigma0, sigma_min, sigma_max, sigma_grid: of the search.
    """

    kind: Literal["fixed", "search", "file"]
    sigma: float | NDArray[np.float64] | None = None
    sigma0: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_grid: tuple[float, ...] | None = None

    @classmethod
    def fixed(cls, sigma: float) -> SigmaPolicy:
        """The same sigma everywhere."""
        check_sigma(sigma, 1)
        return cls(kind="fixed", sigma=sigma)

    @classmethod
    def given(cls, sigma: NDArray[np.float64]) -> SigmaPolicy:
        """One sigma for each input of the run, in its order."""
        return cls(kind="file", sigma=check_sigma(sigma, len(sigma)))

    @classmethod
    def search(
        cls,
        sigma0: float,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_grid: Sequence[float] | None = None,
    ) -> SigmaPolicy:
        """The forward-only search from sigma0, over a finite set or a range (default sigma0 / 4 .. 4 sigma0)."""
        if sigma_grid is not None:
            grid = tuple(float(s) for s in check_sigma(np.unique(sigma_grid), len(np.unique(sigma_grid))))
            return cls(kind="search", sigma0=sigma0, sigma_grid=grid)
        return cls(
            kind="search",
            sigma0=sigma0,
            sigma_min=sigma0 / 4 if sigma_min is None else sigma_min,
            sigma_max=sigma0 * 4 if sigma_max is None else sigma_max,
        )

    @property
    def forwards(self) -> int:
        """Samples an input that choosing costs."""
        return SearchPlan().forwards if self.kind == "search" else 0

    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        """Raise SigmaError or its kin if it could not serve ``size`` inputs."""
        if self.kind != "search":
            check_sigma(self.sigma, size)  # type: ignore[arg-type]
        elif self.sigma0 is not None:
            _grid(smoothed.certificate, self.sigma0, self.sigma_min, self.sigma_max, self.sigma_grid, 2)

    def config(self) -> dict[str, Any]:
        """The policy as a header shows it."""
        return {key: getattr(self, key) for key in ("sigma0", "sigma_min", "sigma_max", "sigma_grid")}


def subset_ids(data: Dataset, skip: int, maximum: int | None) -> list[int]:
    """Ids 0, skip, 2 skip, .., at most so many."""
    if skip < 1 or (maximum is not None and maximum < 1):
        raise InputError(f"skip={skip}, max={maximum}: expected whole numbers of at least 1.")
    return list(range(0, len(data), skip))[:maximum]


def check_labels(data: Dataset, ids: list[int], num_classes: int) -> None:
    """Raise InputError if a label names no class of the model."""
    if data.y is not None and (largest := int(data.y[ids].max())) >= num_classes:
        raise InputError(
            f"label {largest} is out of range for a model with {num_classes} classes (0..{num_classes - 1}); "
            "this is another data set's model, or num_classes is wrong."
        )


def certify_run(
    smoothed: SmoothedClassifier,
    data: Dataset,
    policy: SigmaPolicy,
    out: str | Path,
    *,
    model_name: str,
    model_id: str | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    bound: str = "one-class",
    skip: int = 1,
    maximum: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Certify inputs of a data set into a new run folder, level ``pointwise``.

    Args:
        policy: where each input's sigma comes from; search noise and certification noise are never shared.
        out: a folder that does not exist or is empty.   model_name: how the model was loaded; model_id: names a model
            that has no hash.   skip, maximum: every so many-th input, at most so many of them.
        n0, n, alpha, bound, seed, progress: as for ``SmoothedClassifier.certify``. An input's id is its index.
    Raises: InputError and its kin before anything is written; ModelError, RunError.
    """
    check_count(n0, "n0")
    check_count(n0, "n0")
    check_feasible(n, alpha, bound)
    ids = subset_ids(data, skip, maximum)
    check_labels(data, ids, smoothed.num_classes)
    policy.check(smoothed, len(ids))
    batch = smoothed.prepare(data[ids[:1]][0])
    header = Header(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{p: version(p) for p in ("ddsmoothing", "torch", "numpy")}},
        model=ModelIdentity(name=model_name, sha256=model_hash(smoothed.model), model_id=model_id),
        data=DataIdentity.model_validate(data.fingerprint()),
        subset=Subset(skip=skip, max=maximum, size=len(ids)),
        num_classes=smoothed.num_classes,
        norm=smoothed.certificate.norm,
        level="pointwise",
        sigma_policy=policy.kind,
        sigma=float(policy.sigma) if isinstance(policy.sigma, (int, float)) else None,
        sampler="exact",
        bound=bound,
        n0=n0,
        n=n,
        alpha=alpha,
        seed=checked_seed(seed),
        dtype=str(batch.dtype).removeprefix("torch."),
        device=str(batch.device),
        block_size=smoothed.block_rows(batch.d),
        config=policy.config(),
    )
    writer = RunWriter(Path(out), header)
    try:
        for rows in _groups(len(ids), policy.forwards + n0 + n):
            group = [ids[i] for i in rows]
            x, y = data[group]
            found = None
            if policy.kind == "search":
                assert policy.sigma0 is not None
                found = search_sigma(
                    smoothed,
                    x,
                    sigma0=policy.sigma0,
                    sigma_min=policy.sigma_min,
                    sigma_max=policy.sigma_max,
                    sigma_grid=policy.sigma_grid,
                    n=n,
                    alpha=alpha,
                    seed=header.seed,
                    ids=group,
                    progress=progress,
                )
                sigma = found.sigma
            else:
                assert policy.sigma is not None
                sigma = check_sigma(policy.sigma, len(ids))[rows]
            result = smoothed.certify(
                x, sigma, n0=n0, n=n, alpha=alpha, bound=bound, seed=header.seed, ids=group, progress=progress
            )
            writer.append(rows_of(result, None if data.y is None else y.tolist(), found))
    finally:
        writer.close()
        writer.remove_if_empty()
    return load_run(out)


def _groups(total: int, samples: int) -> Iterator[list[int]]:
    size = max(1, min(GROUP_INPUTS, GROUP_SAMPLES // max(1, samples)))
    for start in range(0, total, size):
        yield list(range(start, min(total, start + size)))
