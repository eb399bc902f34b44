"""Which inputs a run takes and where each one's sigma comes from. It knows no files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims import StatelessRule
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import check_sigma
from ddsmoothing.labels import checked_labels
from ddsmoothing.plan import SearchPlan
from ddsmoothing.sigma.search import search_grid, search_range


@dataclass(frozen=True, kw_only=True, eq=False)
class SigmaPolicy:
    """Where each input's sigma comes from.

    Attributes:
        kind: ``fixed`` (one sigma), ``file`` (one for each input of the run, in order), ``search``, or ``rule`` where a
            stateless rule looks at sigmas of its own.
        sigma: the sigma or sigmas of the first two.
        sigma0: where a search starts.
        sigma_min: least sigma of a search.
        sigma_max: largest sigma of a search.
        sigma_grid: the finite set of a search.
        sha256: of the sigmas' file, or of their little-endian float64 numbers.
        rule: the stateless rule.
    """

    kind: Literal["fixed", "search", "file", "rule"]
    sigma: float | NDArray[np.float64] | None = None
    sigma0: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_grid: tuple[float, ...] | None = None
    sha256: str | None = None
    rule: StatelessRule | None = None

    @classmethod
    def stateless(cls, rule: StatelessRule) -> SigmaPolicy:
        """A rule over several sigmas, such as a pair table: a run of level ``stateless``."""
        return cls(kind="rule", rule=rule, sigma_grid=tuple(sorted(rule.sigmas)))

    @classmethod
    def fixed(cls, sigma: float) -> SigmaPolicy:
        """The same sigma everywhere."""
        check_sigma(sigma, 1)
        return cls(kind="fixed", sigma=sigma)

    @classmethod
    def given(cls, sigma: NDArray[np.float64], sha256: str | None = None) -> SigmaPolicy:
        """One sigma for each input of the run, in its order; sha256: of the file they are from, for the header."""
        values = check_sigma(sigma, len(sigma))
        return cls(
            kind="file", sigma=values, sha256=sha256 or hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()
        )

    @classmethod
    def search(
        cls,
        sigma0: float,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_grid: Sequence[float] | None = None,
    ) -> SigmaPolicy:
        """The forward-only search, over a finite set or a range.

        Args:
            sigma0: Where the class is fixed, such as the training sigma.
            sigma_min: Least sigma, default that of ``search_sigma``.
            sigma_max: Largest sigma, default that of ``search_sigma``.
            sigma_grid: A finite set, in place of a range.
        """
        if sigma_grid is not None:
            grid = tuple(float(s) for s in check_sigma(np.unique(sigma_grid), len(np.unique(sigma_grid))))
            return cls(kind="search", sigma0=sigma0, sigma_grid=grid)
        return cls(kind="search", sigma0=sigma0, sigma_min=sigma_min, sigma_max=sigma_max)

    def settled(self, smoothed: SmoothedClassifier) -> SigmaPolicy:
        """The same policy for this model, with the range that its search takes by default, for a run's header."""
        if self.sigma0 is None or self.sigma_grid is not None:
            return self
        low, high = search_range(smoothed.model, self.sigma0, self.sigma_min, self.sigma_max)
        return replace(self, sigma_min=low, sigma_max=high)

    @property
    def forwards(self) -> int:
        """Samples an input that choosing costs."""
        return SearchPlan().forwards if self.kind == "search" else 0

    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        """Raise SigmaError or its kin if it could not serve ``size`` inputs."""
        if self.rule is not None:
            check_sigma(np.array(self.rule.sigmas), len(self.rule.sigmas))
        elif self.kind != "search":
            check_sigma(self.sigma, size)  # type: ignore[arg-type]
        elif self.sigma0 is not None:
            search_grid(smoothed, self.sigma0, self.sigma_min, self.sigma_max, self.sigma_grid, 2)

    @property
    def largest(self) -> float:
        """The largest sigma that an input may get."""
        if self.kind in ("search", "rule"):
            return self.sigma_grid[-1] if self.sigma_grid else float(self.sigma_max or 0.0)
        return float(np.max(self.sigma))  # type: ignore[arg-type]

    @property
    def usual(self) -> float:
        """A sigma such as inputs get, to look at a model with."""
        if self.rule is not None:
            return float(np.median(self.rule.sigmas))
        return float(np.median(np.asarray(self.sigma0 if self.kind == "search" else self.sigma, dtype=float)))

    def config(self) -> dict[str, Any]:
        """The policy as a header shows it; that of a search is what ``search_sigma`` takes."""
        if self.kind == "file":
            return {"sha256": self.sha256}
        return {key: getattr(self, key) for key in ("sigma0", "sigma_min", "sigma_max", "sigma_grid")}


def checked_policy(policy: object) -> SigmaPolicy:
    """A policy as it is; InputError saying what to write in place of a plain number."""
    if isinstance(policy, SigmaPolicy):
        return policy
    fixed = f"SigmaPolicy.fixed({policy})" if isinstance(policy, (int, float)) else "SigmaPolicy.fixed(0.25)"
    raise InputError(f"the policy is {policy!r}, expected {fixed}, SigmaPolicy.search(sigma0), or .given(sigmas).")


def subset_ids(data: Dataset, skip: int, maximum: int | None, shard: tuple[int, int] | None = None) -> list[int]:
    """Ids 0, skip, 2 skip, .., at most so many; of these the i-th, (i + n)-th, .. for the shard ``(i, n)``."""
    if skip < 1 or (maximum is not None and maximum < 1):
        raise InputError(f"skip={skip}, max={maximum}: expected whole numbers of at least 1.")
    ids = list(range(0, len(data), skip))[:maximum]
    if shard is None:
        return ids
    index, parts = shard
    if not 1 <= index <= parts <= len(ids):
        raise InputError(f"shard {index}/{parts}: expected i/n with 1 <= i <= n <= {len(ids)}, the number of inputs.")
    return ids[index - 1 :: parts]


def check_labels(data: Dataset, ids: list[int], num_classes: int) -> None:
    """Raise InputError if a label names no class of the model."""
    if data.y is not None:
        checked_labels(data.y[ids], len(ids), num_classes)
