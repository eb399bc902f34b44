"""Where the sigma of each input of a run comes from: one for all, one for each, a search, or
those of a stateless rule.

It knows the smoothed classifier; no data sets, no files.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.claims import StatelessRule
from ddsmoothing.claims.named import STATELESS_RULES
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import check_sigma
from ddsmoothing.plan import SearchPlan
from ddsmoothing.sigma.search import SigmaSearch, search_grid, search_range, search_sigma

Chosen = tuple[NDArray[np.float64], SigmaSearch | None]


class SigmaPolicy(ABC):
    """Where each input's sigma comes from: ``fixed``, ``given``, ``search`` or ``stateless``.

    Attributes:
        kind: As a header names it.
        forwards: Samples an input that choosing costs.
        rule: The stateless rule that looks at several sigmas of its own, None where each input has one.
    """

    kind: ClassVar[str]
    forwards: ClassVar[int] = 0
    rule: StatelessRule | None = None

    @staticmethod
    def fixed(sigma: float | np.floating[Any]) -> FixedSigma:
        """The same sigma everywhere.

        Args:
            sigma: In the units of the input.
        Raises:
            SigmaError: It is not positive and finite.
        """
        return FixedSigma(sigma=float(check_sigma(sigma, 1)[0]))

    @staticmethod
    def given(sigma: NDArray[np.float64], sha256: str | None = None) -> GivenSigmas:
        """One sigma for each input of the run, in its order.

        Args:
            sigma: ``(B,)``.
            sha256: Of the file they are from, for the header; default: of the numbers.
        Raises:
            SigmaError: One of them is not positive and finite.
        """
        values = check_sigma(sigma, np.size(sigma))
        if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", str(sha256)):
            raise InputError(f"sha256 is {sha256!r}, expected the 64 hex digits of a file of sigmas, or None.")
        return GivenSigmas(sigma=values, sha256=sha256 or hashlib.sha256(values.astype("<f8").tobytes()).hexdigest())

    @staticmethod
    def search(
        sigma0: float,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_grid: Sequence[float] | None = None,
    ) -> SearchedSigma:
        """The forward-only search, over a finite set or a range.

        Args:
            sigma0: Where the class is fixed, such as the training sigma.
            sigma_min: Least sigma, default that of ``search_sigma``.
            sigma_max: Largest sigma, default that of ``search_sigma``.
            sigma_grid: A finite set, in place of a range.
        Raises:
            SigmaError: One of them is not positive and finite.
            InputError: The finite set is empty, or there is a range beside it.
        """
        start = SigmaPolicy.fixed(sigma0).sigma
        low, high = (None if end is None else SigmaPolicy.fixed(end).sigma for end in (sigma_min, sigma_max))
        if sigma_grid is None:
            return SearchedSigma(sigma0=start, sigma_min=low, sigma_max=high)
        if (low, high) != (None, None):
            raise InputError("sigma_grid is a finite set, expected no sigma_min and sigma_max with it.")
        given = list(sigma_grid) if isinstance(sigma_grid, Iterable) else sigma_grid
        values = np.unique(check_sigma(given, len(given) if isinstance(given, list) else 1))
        if not len(values):
            raise InputError("sigma_grid is empty, expected the sigmas of a finite set.")
        return SearchedSigma(sigma0=start, sigma_grid=tuple(values.tolist()))

    @staticmethod
    def stateless(rule: StatelessRule) -> RuledSigmas:
        """The sigmas of a stateless rule, such as a pair table, at all of which it looks: a run of level ``stateless``.

        Args:
            rule: Fixed before, on other inputs.
        Raises:
            InputError: It is none that a run can hold.
        """
        if STATELESS_RULES.get(getattr(rule, "kind", "")) is not type(rule):
            known = ", ".join(sorted(kind.__name__ for kind in STATELESS_RULES.values()))
            raise InputError(f"the rule is {type(rule).__name__}, expected one that a run can hold: {known}.")
        return RuledSigmas(rule=rule)

    @property
    def one(self) -> float | None:
        """The sigma of every input, None where they differ."""
        return None

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest sigma that an input may get."""

    def settled(self, smoothed: SmoothedClassifier) -> SigmaPolicy:
        """The same policy for this model, with what is taken by default, for a run's header."""
        return self

    @abstractmethod
    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        """Raise SigmaError or its kin if it could not serve ``size`` inputs."""

    @abstractmethod
    def guess(self, place: int | None = None) -> float:
        """A sigma without a forward pass: of the input at a place of the run, or one that stands for all."""

    @abstractmethod
    def choose(
        self,
        smoothed: SmoothedClassifier,
        x: torch.Tensor,
        places: Sequence[int],
        *,
        ids: Sequence[int],
        n: int,
        alpha: float,
        seed: int,
        progress: Progress | None = None,
    ) -> Chosen:
        """The sigmas ``(B,)`` of inputs, and the search that found them, if there was one.

        Args:
            smoothed: Whose radius is to be large.
            x: ``(B, ...)``.
            places: Of each input in the run.
            ids: Noise keys of the inputs.
            n: Samples of the certification to come.
            alpha: Of the certification to come.
            seed: Of the noise; choosing has a stream of its own.
            progress: Called with samples done.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """As a header keeps it, without the one sigma of all, which stands beside it."""


@dataclass(frozen=True, kw_only=True)
class FixedSigma(SigmaPolicy):
    """The same sigma everywhere.

    Attributes:
        sigma: In the units of the input.
    """

    kind: ClassVar = "fixed"

    sigma: float

    @property
    def one(self) -> float:
        return self.sigma

    @property
    def largest(self) -> float:
        return self.sigma

    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        check_sigma(self.sigma, size)

    def guess(self, place: int | None = None) -> float:
        return self.sigma

    def choose(self, smoothed: SmoothedClassifier, x: torch.Tensor, places: Sequence[int], **asked: Any) -> Chosen:
        return check_sigma(self.sigma, len(x)), None

    def config(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenSigmas(SigmaPolicy):
    """One sigma for each input of the run, in its order.

    Attributes:
        sigma: ``(B,)``.
        sha256: Of the sigmas' file, or of their little-endian float64 numbers.
    """

    kind: ClassVar = "file"

    sigma: NDArray[np.float64]
    sha256: str

    @property
    def largest(self) -> float:
        return float(self.sigma.max())

    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        check_sigma(self.sigma, size)

    def guess(self, place: int | None = None) -> float:
        return float(np.median(self.sigma) if place is None else self.sigma[place])

    def choose(self, smoothed: SmoothedClassifier, x: torch.Tensor, places: Sequence[int], **asked: Any) -> Chosen:
        return self.sigma[list(places)], None

    def config(self) -> dict[str, Any]:
        return {"sha256": self.sha256}


@dataclass(frozen=True, kw_only=True)
class SearchedSigma(SigmaPolicy):
    """The forward-only search; see ``search_sigma``.

    Attributes:
        sigma0: Where the class is fixed.
        sigma_min: Least sigma.
        sigma_max: Largest sigma.
        sigma_grid: A finite set, in place of a range.
    """

    kind: ClassVar = "search"
    forwards: ClassVar = SearchPlan().forwards

    sigma0: float
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_grid: tuple[float, ...] | None = None

    @property
    def largest(self) -> float:
        return self.sigma_grid[-1] if self.sigma_grid else float(self.sigma_max or 0.0)

    def settled(self, smoothed: SmoothedClassifier) -> SearchedSigma:
        """With the range that the search takes by default."""
        if self.sigma_grid is not None:
            return self
        low, high = search_range(smoothed.model, self.sigma0, self.sigma_min, self.sigma_max)
        return replace(self, sigma_min=low, sigma_max=high)

    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        search_grid(smoothed, self.sigma0, self.sigma_min, self.sigma_max, self.sigma_grid, 2)

    def guess(self, place: int | None = None) -> float:
        return self.sigma0

    def choose(self, smoothed: SmoothedClassifier, x: torch.Tensor, places: Sequence[int], **asked: Any) -> Chosen:
        found = search_sigma(smoothed, x, **self.config(), **asked)
        return found.sigma, found

    def config(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("sigma0", "sigma_min", "sigma_max", "sigma_grid")}


@dataclass(frozen=True, kw_only=True)
class RuledSigmas(SigmaPolicy):
    """The sigmas of a stateless rule.

    Attributes:
        rule: Which looks at all of them.
    """

    kind: ClassVar = "rule"

    rule: StatelessRule

    def __post_init__(self) -> None:
        self.rule.check_alone()

    @property
    def largest(self) -> float:
        return max(self.rule.sigmas)

    def check(self, smoothed: SmoothedClassifier, size: int) -> None:
        check_sigma(np.array(self.rule.sigmas), len(self.rule.sigmas))

    def guess(self, place: int | None = None) -> float:
        return float(np.median(self.rule.sigmas))

    def choose(self, smoothed: SmoothedClassifier, x: torch.Tensor, places: Sequence[int], **asked: Any) -> Chosen:
        """Nothing is chosen: the first sigma stands for all."""
        return check_sigma(self.rule.sigmas[0], len(x)), None

    def config(self) -> dict[str, Any]:
        return {"sigma_grid": tuple(sorted(self.rule.sigmas))}


def as_policy(given: object) -> SigmaPolicy:
    """A policy as it is, or that of one number; InputError for anything else."""
    if isinstance(given, SigmaPolicy):
        return given
    if isinstance(given, (int, float, np.floating)) and not isinstance(given, bool):
        return SigmaPolicy.fixed(given)
    raise InputError(
        f"sigma is {given!r}, expected a number, SigmaPolicy.search(sigma0), or SigmaPolicy.given(sigmas)."
    )
