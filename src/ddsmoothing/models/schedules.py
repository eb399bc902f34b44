"""Variance-preserving noise schedules of diffusion models: which timestep has which sigma. No torch and no files.

A diffusion model mixes a clean image z in [-1, 1] with unit noise: ``x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps``. So
``x_t / sqrt(abar_t)`` is z with noise of standard deviation ``sqrt((1 - abar_t)/abar_t)``, which is twice that of the
same noise on the same image in [0, 1]: ``sigma(t) = sqrt((1 - abar_t)/abar_t) / 2``. Here sigma is in [0, 1] units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, unknown

SCHEDULES: Final = ("linear", "scaled_linear", "cosine")
RULES: Final = ("nearest", "ceil")
LARGEST_BETA: Final = 0.999  # of the cosine schedule, as published


def alphas_bar(name: str, steps: int, first: float | None = None, last: float | None = None) -> tuple[float, ...]:
    """``abar_t`` for t = 0 .. steps - 1, the products of ``1 - beta`` up to t, in float64.

    Args:
        name: ``linear``: betas in equal steps from first to last; ``scaled_linear``: their square roots in equal steps;
            ``cosine``: from the squared cosine of Nichol and Dhariwal, which needs neither.
        steps: T, at least 2.
        first: the first beta; default ``0.1/T``, which is 1e-4 at T = 1000.
        last: the last beta; default ``20/T``.
    Raises: InputError.
    References: Ho et al. 2020, arXiv:2006.11239; Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """
    if name not in SCHEDULES:
        raise InputError(unknown("schedule", name, SCHEDULES))
    if steps < 2:
        raise InputError(f"a schedule has {steps} steps, expected at least 2.")
    first, last = 0.1 / steps if first is None else first, 20.0 / steps if last is None else last
    if name == "linear":
        return from_betas(np.linspace(first, last, steps))
    if name == "scaled_linear":
        return from_betas(np.linspace(first**0.5, last**0.5, steps) ** 2)
    left = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - left[1:] / left[:-1], LARGEST_BETA))


def from_betas(betas: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    """``abar_t`` of given betas, each between 0 and 1."""
    given = np.asarray(betas, dtype=np.float64)
    if given.ndim != 1 or len(given) < 2 or not ((given > 0) & (given < 1)).all():
        raise InputError("the betas of a schedule are expected to be two or more numbers between 0 and 1.")
    return tuple(float(value) for value in np.cumprod(1.0 - given))


def sigmas(table: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """``sigma(t)`` of ``abar_t``, ascending, in [0, 1] units.

    Raises: InputError where the table is not strictly falling between 1 and 0.
    """
    abar = np.asarray(table, dtype=np.float64)
    falls = abar.ndim == 1 and len(abar) >= 2 and abar[-1] > 0.0 and abar[0] < 1.0 and bool((np.diff(abar) < 0).all())
    if not falls:
        raise InputError("a schedule's abar is expected to fall strictly from below 1 to above 0.")
    return np.asarray(np.sqrt((1.0 - abar) / abar) / 2.0)


def timestep_edges(table: Sequence[float] | NDArray[np.float64], rule: str) -> NDArray[np.float32]:
    """The T - 1 ascending edges between timesteps: t is the number of edges that lie below sigma.

    Sigma is compared in float32, in which it comes. The edges are rounded down to float32: a float32 number is at most
    an edge exactly where it is at most the rounded one.

    Args:
        table: ``abar_t``.
        rule: ``nearest``: the timestep whose sigma is nearest in logarithm, of two the smaller; ``ceil``: the first one
            whose sigma is not below. Beyond the table's ends both take the end.
    """
    if rule not in RULES:
        raise InputError(unknown("timestep rule", rule, RULES))
    own = sigmas(table)
    edges = np.sqrt(own[:-1] * own[1:]) if rule == "nearest" else own[:-1]
    rounded = edges.astype(np.float32)
    return np.where(rounded > edges, np.nextafter(rounded, np.float32(0.0)), rounded)
