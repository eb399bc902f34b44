"""What is wrong with one row of a run, held against its own counts and the header; see ``verify``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ddsmoothing.verify.arithmetic import LARGEST_N, LEVELS, binomial_tail, decimal, grid_distance, normal_quantile

TOLERANCE: Final = Fraction(1, 10**9)  # claims may lie so far on the safe side, never on the other
SPLIT: Final = Fraction(9, 10)  # of alpha, for the top class, with the two-class bound
EARLY: Final = Fraction(3, 100)  # of alpha, for each look of the sampler target but the last
LAST: Final = Fraction(70, 100)
LAST_LOOK: Final = 100_000
LARGEST_SIGMA: Final = 12.5
LARGEST_LEVELS: Final = 2**20
LARGEST_STEPS: Final = 70_000  # of the grid, in the noise's scale
SHA_DIGITS: Final = frozenset("0123456789abcdef")


def check_row(row: dict[str, Any], header: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one row, held against its own counts and the header."""
    yield from _identity(row, header)
    if any(type(c) is not int or not 0 <= c <= LARGEST_N for c in (*row["n0_counts"], *row["n_counts"])):
        yield "counts must be whole numbers from 0 on"
        return
    yield from _samples(row, header)
    yield from _noise(row, levels_of(header))
    if row.get("coin") != (drawn := coin_of(header["seed"], row["id"]) if header.get("randomized") else None):
        yield f"the coin is {row.get('coin')}, the run's seed gives {drawn}"
        return
    wrong = list(_bounds(row))
    yield from wrong
    if row["level"] == "memory":
        yield from _kept(row, wrong)
        return
    yield from _claims(row)
    if not wrong:
        yield from _radius(row)


def coin_of(seed: int, input_id: int) -> float:
    """The coin of an input, uniform on (0, 1]: the first 53 bits of stream 3 of Philox with this key."""
    key, counter = np.array([seed, input_id], dtype=np.uint64), np.array([0, 0, 3, 0], dtype=np.uint64)
    return (int(np.random.Philox(key=key, counter=counter).random_raw()) // 2**11 + 1) / 2**53


def _identity(row: dict[str, Any], header: dict[str, Any]) -> Iterator[str]:
    for name in ("norm", "level", "sampler", "bound", "alpha"):
        if row[name] != header[name]:
            yield f"{name} is {row[name]!r}, that of the header {header[name]!r}"
    skip, most = header["subset"]["skip"], header["subset"]["max"]
    position, rest = divmod(row["id"], skip)
    if rest or row["id"] >= header["data"]["length"] or (most is not None and position >= most) or position < 0:
        yield "this input does not belong to the run's subset"
    if header["sigma_policy"] == "fixed" and row["sigma"] != header["sigma"]:
        yield f"sigma is {row['sigma']}, the run's fixed sigma {header['sigma']}"
    if (row["choice"] is not None) != (header["sigma_policy"] == "search"):
        yield "a record of the sigma search stands with the policy search, and only there"
    if len(row["input_sha256"]) != 64 or not set(row["input_sha256"]) <= SHA_DIGITS:
        yield "input_sha256 is not a SHA-256"


def _samples(row: dict[str, Any], header: dict[str, Any]) -> Iterator[str]:
    """Numbers of samples: those of the header, and those of the looks."""
    n0, n = sum(row["n0_counts"]), sum(row["n_counts"])
    if row["samples"] != n0 + n:
        yield f"samples is {row['samples']}, the counts sum to {n0 + n}"
    for name in ("n0_counts", "n_counts"):
        if len(row[name]) != header["num_classes"]:
            yield f"{name} has {len(row[name])} classes, the run {header['num_classes']}"
    stopped = n == 0 if row["level"] == "memory" else row["reason"] not in ("certified", "abstained")
    if row["sampler"] == "exact":
        asked = header.get("sampler_options", header)
        if n0 != asked["n0"] or (n != asked["n"] and not (stopped and n == 0)):
            yield f"n0={n0} and n={n} samples, the header says n0={asked['n0']} and n={asked['n']}"
    looks = _looks(row)
    if stopped and not n:
        return
    if not looks or looks[-1][0] != n or looks[-1][1] != row["n_counts"][_top(row)]:
        yield "the last look is not the counts"
    if any(not 0 <= k <= m for m, k, _ in looks) or any(a[0] >= b[0] or a[1] > b[1] for a, b in _pairs(looks)):
        yield "the looks do not grow"
    if sum((share for _, _, share in looks), Fraction(0)) > _share(row) * (1 + Fraction(1, 2**50)):
        yield "the looks spend more than alpha"
    if row["sampler"] == "target":
        allowed = [float(part * Fraction(row["alpha"])) for part in (EARLY, LAST)]
        if any(float(share) > max(allowed) * (1 + 1e-12) for _, _, share in looks) or any(
            float(share) > allowed[0] * (1 + 1e-12) for m, _, share in looks if m < LAST_LOOK
        ):
            yield "a look has more than its share of alpha"


def _pairs(looks: list[tuple[int, int, Fraction]]) -> Iterator[tuple[Any, Any]]:
    return pairwise(looks)


def _top(row: dict[str, Any]) -> int:
    return int(row["n0_counts"].index(max(row["n0_counts"])))


def _share(row: dict[str, Any]) -> Fraction:
    """The part of alpha that the top class's bound may spend."""
    return Fraction(row["alpha"]) * (1 if row["bound"] == "one-class" else SPLIT)


def _looks(row: dict[str, Any]) -> list[tuple[int, int, Fraction]]:
    """The moments ``(n, k, alpha)`` a lower bound may be taken at; without a record, all samples at once."""
    found = row.get("looks")
    if found is None:
        n = sum(row["n_counts"])
        return [(n, row["n_counts"][_top(row)], _share(row))] if n else []
    rows = [(x["n"], x["k"], x["alpha"]) if isinstance(x, dict) else tuple(x) for x in found]
    if any(type(n) is not int or type(k) is not int or n > LARGEST_N for n, k, _ in rows):
        raise ValueError("a look is not (n, k, alpha)")
    return [(n, k, Fraction(share)) for n, k, share in rows]


def levels_of(header: dict[str, Any]) -> int:
    """Steps to the unit of the run's grid."""
    levels = header.get("levels", LEVELS)
    if type(levels) is not int or not 1 <= levels <= LARGEST_LEVELS:
        raise ValueError(f"levels is {levels!r}")
    return levels


def implied_size(row: dict[str, Any], levels: int) -> int | None:
    """The number d of an input's numbers that its total-variation budget implies; None for float noise."""
    if row["noise"] != "grid":
        return None
    one = _one_coordinate(row, levels)
    return round(Fraction(row["tv"]) / one) if one > Fraction(1, 2**80) else None


def _one_coordinate(row: dict[str, Any], levels: int) -> Fraction:
    name, scale = ("gaussian", row["sigma"]) if row["norm"] == "l2" else ("uniform", row["lambda"])
    if scale * levels > LARGEST_STEPS:
        raise ValueError(f"noise of scale {scale} spans more than {LARGEST_STEPS} steps of the grid")
    return grid_distance(name, float(scale), levels)


def _noise(row: dict[str, Any], levels: int) -> Iterator[str]:
    """Scale of the noise and its total-variation budget."""
    sigma, half_width = row["sigma"], row["lambda"]
    if not 0 < sigma <= LARGEST_SIGMA:
        raise ValueError(f"sigma is {sigma}")
    if row["norm"] == "l2" and half_width is not None:
        yield "lambda belongs to uniform noise"
    if row["norm"] == "l1" and not math.isclose(half_width, math.sqrt(3) * sigma, rel_tol=1e-15):
        yield f"lambda is {half_width}, sqrt(3) sigma is {math.sqrt(3) * sigma}"
        return
    if row["noise"] not in ("grid", "float"):
        yield f"noise is {row['noise']!r}, expected grid or float"
    elif row["noise"] == "float":
        if row["tv"] != 0:
            yield f"tv is {row['tv']}, expected 0 for float noise, where it is not known"
    else:
        tv, one = Fraction(row["tv"]), _one_coordinate(row, levels)
        d = round(tv / one) if one > Fraction(1, 2**80) else 0
        off = abs(tv - d * one) if d else max(Fraction(0), tv - Fraction(1, 2**50))
        if off > tv / 10**6 + d * Fraction(1, 2**84) or (one > Fraction(1, 2**80) and not d):
            yield f"tv is {row['tv']}, expected a multiple of {float(one):.6g}, that of one number at this scale"


def _tail(k: int, n: int, p: Fraction, coin: Fraction | None) -> tuple[Fraction, Fraction]:
    """Bounds on ``P_p[X >= k]``, or with a coin on ``P_p[X > k] + coin * P_p[X = k]``."""
    low, high = (Fraction(v) for v in binomial_tail(k, n, p))
    if coin is None:
        return low, high
    rest = [Fraction(v) for v in binomial_tail(k + 1, n, p)]
    return (1 - coin) * rest[0] + coin * low, (1 - coin) * rest[1] + coin * high


def _bounds(row: dict[str, Any]) -> Iterator[str]:
    """p_lower and p_upper: true for the counts, and no further from them than the tolerance."""
    lower, upper, tv = Fraction(row["p_lower"]), Fraction(row["p_upper"]), Fraction(row["tv"])
    if not (0 <= lower <= 1 and 0 <= upper <= 1):
        yield "p_lower and p_upper must lie in [0, 1]"
        return
    looks, coin = _looks(row), None if row.get("coin") is None else Fraction(row["coin"])
    if lower > 0 and not any(_lower_holds(look, lower + tv, coin) for look in looks):
        yield f"p_lower is {float(lower)}, more than the counts allow"
    above = lower + tv + TOLERANCE
    if above < 1 and any(_lower_holds(look, above, coin) for look in looks):
        yield f"p_lower is {float(lower)}, less than the counts give"
    complement, n = 1 - lower, sum(row["n_counts"])
    others = max((c for i, c in enumerate(row["n_counts"]) if i != _top(row)), default=0)
    two = row["bound"] == "two-class" and n > 0
    if upper < complement and not (two and _upper_holds(others, n, upper - tv, row)):
        yield f"p_upper is {float(upper)}, less than the counts allow"
    below = upper - TOLERANCE
    if below > complement or (two and below > tv and _upper_holds(others, n, below - tv, row)):
        yield f"p_upper is {float(upper)}, more than the counts give"


def _lower_holds(look: tuple[int, int, Fraction], p: Fraction, coin: Fraction | None) -> bool:
    """Is ``P_p[X >= k] <= alpha``, or its randomised form (at k = n capped at one half)?"""
    n, k, share = look
    if Fraction(binomial_tail(k, n, p)[1]) <= share:
        return True
    if coin is None or (k == n and Fraction(binomial_tail(n, n, p)[1]) > Fraction(1, 2)):
        return False
    return _tail(k, n, p, coin)[1] <= share


def _upper_holds(k: int, n: int, p: Fraction, row: dict[str, Any]) -> bool:
    """Is ``P_p[X <= k] <= alpha / 10``, the rest of the split?"""
    return Fraction(binomial_tail(n - k, n, 1 - p)[1]) <= Fraction(row["alpha"]) * (1 - SPLIT)


def _separated(row: dict[str, Any]) -> bool:
    """Do the bounds separate the class, and further than the input was moved?"""
    return bool(row["p_lower"] > row["p_upper"]) and not (row.get("moved") and _radius_of(row)[1] == 0)


def _claims(row: dict[str, Any]) -> Iterator[str]:
    """Class, correctness and reason, which follow from the bounds and the distance the input was moved."""
    certified = _separated(row)
    expected = _top(row) if certified else -1
    if row["prediction"] != expected:
        yield f"prediction is {row['prediction']}, the counts give {expected}"
    if row["correct"] is not (None if row["label"] is None else row["prediction"] == row["label"]):
        yield f"correct is {row['correct']}, which does not fit label and prediction"
    if (row["reason"] == "certified") != certified:
        yield f"reason is {row['reason']!r}, but the bounds {'' if certified else 'do not '}separate the class"


def _radius(row: dict[str, Any]) -> Iterator[str]:
    """The radius: at most what the bounds give, and no further below it than the tolerance."""
    radius, (low, high) = Fraction(row["radius"]), _radius_of(row)
    if high == 0:
        if radius:
            yield f"radius is {row['radius']} without a certificate"
    elif radius > high:
        yield f"radius is {row['radius']}, more than the {decimal(high):.9f} that the bounds give"
    elif radius < low * (1 - TOLERANCE) - TOLERANCE:
        yield f"radius is {row['radius']}, less than the {decimal(low):.9f} that the bounds give"


def _radius_of(row: dict[str, Any]) -> tuple[Fraction, Fraction]:
    """Lower and upper bound on the radius of p_lower and p_upper; 0 where they do not separate the class.

    The distance that an input was moved to the grid, where a row states one, is subtracted.
    """
    lower, upper, moved = Fraction(row["p_lower"]), Fraction(row["p_upper"]), Fraction(row.get("moved") or 0)
    if moved < 0:
        raise ValueError(f"an input cannot move by {float(moved)}")
    if lower <= upper:
        return Fraction(0), Fraction(0)
    if row["norm"] == "l1":
        low = high = Fraction(row["lambda"]) * (lower - upper)
    else:
        half = Fraction(row["sigma"]) / 2
        (a_low, a_high), (b_low, b_high) = normal_quantile(lower), normal_quantile(upper)
        low, high = half * (a_low - b_high), half * (a_high - b_low)
    return max(Fraction(0), low - moved), max(Fraction(0), high - moved)


def _kept(row: dict[str, Any], wrong: list[str]) -> Iterator[str]:
    """What a memory made of a row: never more than its own certificate, unless a stored region answered."""
    note, kind = row["memory"], row["memory"]["kind"]
    if kind not in ("kept", "cut", "answered", "abstained"):
        yield f"the memory's kind is {kind!r}"
        return
    certified = _separated(row)
    if note["prediction"] != (_top(row) if certified else -1):
        yield f"the run's class is {note['prediction']}, which the counts do not give"
    if row["correct"] is not (
        None if row["label"] is None else row["prediction"] == row["label"] and row["radius"] > 0
    ):
        yield f"correct is {row['correct']}, which does not fit label, prediction and radius"
    if kind == "answered":
        if note["by"] is None or row["prediction"] < 0:
            yield "an answered row names no region or no class"
        return
    if kind == "abstained" and (row["prediction"] != -1 or row["radius"] != 0):
        yield "an abstained row has a class or a radius"
    if kind != "abstained" and row["prediction"] != note["prediction"]:
        yield f"prediction is {row['prediction']}, that of its certificate {note['prediction']}"
    if row["radius"] > note["certified"]:
        yield f"radius is {row['radius']}, more than the {note['certified']} that was certified"
    if note["alpha"] is not None and note["alpha"] > row["alpha"]:
        yield f"the memory gave alpha {note['alpha']}, more than the run's {row['alpha']}; this is not recomputed"
    elif not wrong and Fraction(note["certified"]) > _radius_of(row)[1]:
        yield f"certified is {note['certified']}, more than the bounds give"
