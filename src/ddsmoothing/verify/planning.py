"""How many fresh samples the sampler ``plan`` draws after a pilot: the rule of docs/samplers.md, written once more.

No bound rests on it. It shows that the number was not chosen after the counts were seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

BONUS: Final = 0.05  # for a radius above 0
CLOSE: Final = 1e-7  # two numbers of samples of so nearly the same worth may change places


def planned(count: int, n: int, header: dict[str, Any], needed: float) -> Iterator[str]:
    """Whether n is what the plan gives for a pilot in which the binding event happened ``count`` times.

    Args:
        needed: probability of the event at which the radius is 0.
    """
    options = header["sampler_options"]
    share = header["alpha"] * (1.0 if header["rule"]["bound"] == "one-class" else 0.9)
    worth = values(count, options["pilot"], share, options["n_max"], options["price"], header["norm"] == "l1", needed)
    if n not in worth:
        yield f"{n} fresh samples, which the sampler plan never draws"
    elif worth[n] < max(worth.values()) - CLOSE:
        best = max(worth, key=lambda m: worth[m])
        yield f"{n} fresh samples, the sampler plan draws {best} after this pilot"


@lru_cache(maxsize=4096)
def values(
    count: int, pilot: int, alpha: float, largest: int, price: float, linear: bool, needed: float
) -> dict[int, float]:
    """The worth of each number of samples: expected radius, a bonus for having one, less the price."""
    at = float(ndtri(needed))
    z = min(0.0, at) - 0.2 + 0.02 * np.arange(271)
    log_odds = count * np.log(ndtr(z)) + (pilot - count) * np.log(ndtr(-z))
    weights = np.exp(log_odds - log_odds.max())
    weights = weights / weights.sum()
    steps = [500.0 * (max(500, largest) / 500.0) ** (i / 23) for i in range(24)]
    sizes = {min(largest, 500 * max(1, math.floor(step / 500 + 0.5))) for step in steps}
    cap = float(ndtri(alpha ** (1.0 / largest)))
    found = {0: 0.0}
    for n in sorted(sizes):
        p = betaincinv(n * ndtr(z), n * ndtr(-z) + 1.0, alpha)
        radius = np.clip(2.0 * cap * (p - needed) if linear else ndtri(p) - at, 0.0, None)
        found[n] = float((weights * (radius + BONUS * (radius > 0.0))).sum()) - price * n / largest
    return found
