"""Slow, plain computations that share no code with the package: exact binomial tails, the normal CDF, linear models."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from fractions import Fraction
from math import comb

import numpy as np
import torch
from scipy.stats import binom

PRECISION = Context(prec=130)
PI = Decimal(
    "3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170679821480"
)


def binomial_tail(k: int, n: int, p: float) -> Fraction:
    """``P[Bin(n, p) >= k]`` exactly."""
    hit = Fraction(p)
    a, b = hit.numerator, hit.denominator - hit.numerator
    total = sum(comb(n, i) * a**i * b ** (n - i) for i in range(k, n + 1))
    return Fraction(total, hit.denominator**n)


def normal_cdf(z: Decimal | float) -> Decimal:
    """Phi(z) to some 60 digits for ``|z| <= 14``, by the alternating series of the error function."""
    with localcontext(PRECISION):
        z = Decimal(z)
        term, total, k = z, z, 0
        while abs(term) > Decimal("1e-100"):
            k += 1
            term = -term * z * z / (2 * k)
            total += term / (2 * k + 1)
        return Decimal("0.5") + total / (2 * PI).sqrt()


class Half(torch.nn.Module):
    """Class 1 where ``w.x > t``, class 0 elsewhere; further classes never win."""

    def __init__(self, w: list[float], t: float, num_classes: int = 2) -> None:
        super().__init__()
        self.register_buffer("w", torch.tensor(w, dtype=torch.float64))
        self.t, self.num_classes = t, num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = x.flatten(1).double() @ self.w - self.t
        logits = torch.full((len(x), self.num_classes), -1e9, dtype=torch.float64, device=x.device)
        logits[:, 0], logits[:, 1] = 0.0, margin
        return logits


def violations_allowed(repetitions: int, alpha: float) -> int:
    """More failures than this happen with probability below 1e-6 when each has probability alpha."""
    return int(binom.isf(1e-6, repetitions, alpha))


def is_valid(failed: np.ndarray, alpha: float) -> bool:
    """The verdict of every validity test: failures happen, and no more often than alpha allows."""
    return 0 < int(failed.sum()) <= violations_allowed(len(failed), alpha)
