"""How much each certification of a memory may err: alpha for each, or delta for all of them together.

It knows no files. What counts are ATTEMPTS, certifications started, not regions stored: one that abstained or crashed
has had its chance to err.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddsmoothing.bounds import check_alpha
from ddsmoothing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Risk:
    """Failure probability: exactly one of the two is given.

    Attributes:
        alpha: of each attempt.   delta: that ANY region ever stored is false; attempt t gets
            ``alpha_t = 6 delta / (pi^2 t^2)``, whose sum over all t is delta.
    """

    alpha: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.delta is None):
            raise InputError("expected exactly one of alpha (each attempt) and delta (the whole memory).")
        given = self.alpha if self.alpha is not None else self.delta
        assert given is not None
        check_alpha(given)

    def of(self, attempt: int) -> float:
        """The failure probability of attempt number 1, 2, ..; errs low."""
        if attempt < 1:
            raise InputError(f"attempt is {attempt}, expected 1, 2, ..")
        if self.alpha is not None:
            return self.alpha
        assert self.delta is not None
        return 6.0 * self.delta / (math.pi**2 * attempt**2) * (1.0 - 2.0**-48)

    def __str__(self) -> str:
        if self.alpha is not None:
            return f"alpha={self.alpha:g} for each attempt"
        return f"delta={self.delta:g} for the whole memory"
