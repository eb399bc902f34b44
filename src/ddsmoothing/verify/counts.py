"""A row's measurements: what is impossible in them, and the bounds and radius that they give; see ``verify``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ddsmoothing.verify.arithmetic import LARGEST_N, binomial_tail, normal_quantile
from ddsmoothing.verify.offsets import Atom, chosen, judged_margin, needed_by_plan, offsets_of
from ddsmoothing.verify.planning import planned

TOLERANCE: Final = Fraction(1, 10**9)  # claims may lie so far on the safe side, never on the other
SPLIT: Final = Fraction(9, 10)  # of alpha, for the top class, with the two-class bound
EARLY: Final = Fraction(3, 100)  # of alpha, for each look of the sampler target but the last
LAST: Final = Fraction(70, 100)
SLACK: Final = 1 + Fraction(1, 2**50)  # for shares of alpha that were added up in floats
LOOKS: Final = (100, 200, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 100_000)
STOPPED: Final = {"exact": ("wrong",), "plan": ("wrong", "planned"), "target": ("wrong", "out of reach")}
MOST_DUELLISTS: Final = 128

Row = dict[str, Any]
Seen = list[tuple[int, list[int], Fraction]]  # n, count of each event, alpha


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a row's counts give, whatever it says.

    Attributes:
        top: the class that the pilot chose.   bounds: ``(p_lower, p_upper)`` as far as they are believed.
        radius: lower and upper bound on the radius.   wrong: what is wrong with the bounds that the row states.
    """

    top: int
    certified: bool
    radius: tuple[Fraction, Fraction]
    wrong: list[str] = field(default_factory=list)


def pilot_of(row: Row) -> Row:
    """What chose the class."""
    found: Row = row["measurements"][0]
    return found


def fresh_of(row: Row) -> Row | None:
    """What bounds it, of several measurements the one at the row's sigma; None where nothing was drawn."""
    parts = [part for part in row["measurements"] if part["role"] != "pilot"]
    return next((part for part in parts if part["sigma"] == row["sigma"]), parts[0] if parts else None)


def measurements_of(row: Row, header: Row) -> Iterator[str]:
    """What is impossible in a row's measurements, or not what the header's sampler draws."""
    wrong = list(drawn(row, header))
    yield from wrong
    if wrong:
        return
    pilot, fresh = pilot_of(row), fresh_of(row)
    total = sum(part["n"] for part in row["measurements"])
    if row["samples"] != total:
        yield f"samples is {row['samples']}, the measurements have {total}"
    yield from _sizes(row, header, pilot, fresh)
    if fresh is None:
        return
    coin = coin_of(header["seed"], row["id"]) if header["randomized"] else None
    if fresh.get("coin") != coin:
        yield f"the coin is {fresh.get('coin')}, the run's seed gives {coin}"
    yield from _looks(header, fresh)


def drawn(row: Row, header: Row) -> Iterator[str]:
    """What is impossible in measurements, whatever drew them: in a pilot and, if there are any, fresh samples."""
    classes, pairs = header["num_classes"], header["rule"]["vote"] == "pairwise"
    parts = row["measurements"]
    if not 1 <= len(parts) <= 2 or [part["role"] for part in parts] != ["pilot", "certify"][: len(parts)]:
        yield "the measurements are not a pilot and what certifies"
        return
    for part in parts:
        yield from counted(part, classes, row)
    pilot, fresh = pilot_of(row), fresh_of(row)
    thresholds = offsets_of(header) is not None
    if (
        ("least" in pilot) != (pairs and classes <= MOST_DUELLISTS)
        or ("rivals" in pilot) != ("least" in pilot and thresholds)
        or "wins" in pilot
        or pilot.get("looks")
    ):
        yield f"the pilot does not count what a {header['rule']['vote']} vote asks for"
        return
    if fresh is None:
        return
    if ("wins" in fresh) != pairs or "least" in fresh or "rivals" in fresh:
        yield f"wins belong to a pairwise vote, the run's is {header['rule']['vote']}"
        return
    if pairs and fresh.get("anchor") != top_of(pilot, header):
        yield f"wins are those of class {fresh.get('anchor')}, the pilot chose {top_of(pilot, header)}"
        return
    yield from _seen_rightly(header, fresh, top_of(pilot, header))


def counted(part: Row, classes: int, row: Row) -> Iterator[str]:
    """Numbers of one measurement that cannot be."""
    lists = {name: part[name] for name in ("votes", "least", "wins") if name in part}
    for name, values in lists.items():
        if len(values) != classes or any(type(k) is not int or not 0 <= k <= LARGEST_N for k in values):
            yield f"{name} of the {part['role']} are not {classes} whole numbers from 0 on"
            return
    if any(type(b) is not int or not 0 <= b < classes or b == c for c, b in enumerate(part.get("rivals", ()))):
        yield f"rivals of the {part['role']} are not other classes"
        return
    n, votes = part["n"], part["votes"]
    if type(n) is not int or sum(votes) != n or n < 1:
        yield f"the votes of the {part['role']} sum to {sum(votes)}, n is {n}"
    if part["sigma"] != row["sigma"] or part.get("slot", 0) != 0:
        yield f"the {part['role']} was drawn at sigma {part['sigma']}, the row's is {row['sigma']}"
    if any(k < v or k > n for k, v in zip(part.get("least", ()), votes, strict=False)):
        yield f"a class of the {part['role']} won less often than it was given"
    anchor = part.get("anchor")
    if "wins" in part and anchor in range(classes):
        others = [i for i in range(classes) if i != anchor]
        if part["wins"][anchor] != n or any(
            part["wins"][i] < votes[anchor] or part["wins"][i] + votes[i] > n for i in others
        ):
            yield "the wins do not fit the votes"


def _sizes(row: Row, header: Row, pilot: Row, fresh: Row | None) -> Iterator[str]:
    """Numbers of samples as the header's sampler draws them, which depend on the pilot only."""
    name, options = header["sampler"], header["sampler_options"]
    size = options["n0"] if name == "exact" else options["pilot"]
    if pilot["n"] != size:
        yield f"the pilot has {pilot['n']} samples, the sampler {name} draws {size}"
    wrong = bool(header["label_aware"]) and row["label"] != top_of(pilot, header)
    if fresh is None:
        if header["level"] != "memory" and row["reason"] not in STOPPED[name]:
            yield f"there are no fresh samples, and the reason {row['reason']!r} does not say why"
        if (name == "exact" or (header["level"] != "memory" and row["reason"] == "wrong")) and not wrong:
            yield "sampling stopped as if the pilot's class were wrong, and it is not"
    elif wrong:
        yield "sampling went on though the pilot's class is wrong, and the run stops there"
    elif name == "exact" and fresh["n"] != options["n"]:
        yield f"{fresh['n']} fresh samples, the header says {options['n']}"
    if name == "plan" and not wrong:
        offsets, top = offsets_of(header), top_of(pilot, header)
        needed = 0.5 if offsets is None else needed_by_plan(pilot, header, top, offsets)
        yield from planned(_support(pilot)[top], 0 if fresh is None else fresh["n"], header, needed)


def top_of(pilot: Row, header: Row) -> int:
    """The class that a pilot chooses: most votes, or where wins were counted the largest of the smallest wins."""
    offsets = offsets_of(header)
    if offsets is not None:
        return chosen(pilot, header, offsets)
    pairs = list(zip(_support(pilot), pilot["votes"], strict=True))
    return pairs.index(max(pairs))


def _support(pilot: Row) -> list[int]:
    found: list[int] = pilot["least" if "least" in pilot else "votes"]
    return found


def _events(part: Row, top: int) -> list[int]:
    """How often each event happened that the answer rests on: the class was given, or it beat each other one."""
    return part["wins"] if "wins" in part else [part["votes"][top]]


def _share(header: Row) -> Fraction:
    """The part of alpha that lower bounds get."""
    return Fraction(header["alpha"]) * (1 if header["rule"]["bound"] == "one-class" else SPLIT)


def _seen_rightly(header: Row, fresh: Row, top: int) -> Iterator[str]:
    """Whether looks are moments of these counts, and spend no more than alpha."""
    looks = seen(fresh)
    if not looks or looks[-1][0] != fresh["n"] or looks[-1][1] != _events(fresh, top):
        yield "the last look is not the counts"
        return
    if any(not 0 <= k <= n for n, counts, _ in looks for k in counts) or any(
        a[0] >= b[0] or any(not 0 <= y - x <= b[0] - a[0] for x, y in zip(a[1], b[1], strict=True))
        for a, b in pairwise(looks)
    ):
        yield "the looks do not grow as samples do"
    if min(part for _, _, part in looks) < 0 or sum(part for _, _, part in looks) > _share(header) * SLACK:
        yield "the looks spend more than alpha"


def _looks(header: Row, fresh: Row) -> Iterator[str]:
    """Whether looks are those of the header's sampler."""
    looks, share = seen(fresh), _share(header)
    if header["sampler"] != "target":
        if len(looks) == 1 and abs(looks[0][2] - share) > share * Fraction(1, 2**50):
            yield f"the look has alpha {float(looks[0][2]):g}, the run's is {float(share):g}"
        if len(looks) != 1:
            yield f"the sampler {header['sampler']} looks once, not {len(looks)} times"
        return
    if [n for n, _, _ in looks] != list(LOOKS[: len(looks)]):
        yield "the looks are not those of the sampler target"
    most = {LOOKS[-1]: LAST}
    if any(part > most.get(n, EARLY) * Fraction(header["alpha"]) * SLACK for n, _, part in looks):
        yield "a look has more than its share of alpha"


def seen(fresh: Row) -> Seen:
    """The moments at which a lower bound may be taken."""
    found = [(n, list(counts), Fraction(alpha)) for n, counts, alpha in fresh.get("looks", ())]
    if any(type(n) is not int or n > LARGEST_N or any(type(k) is not int for k in counts) for n, counts, _ in found):
        raise ValueError("a look is not (n, counts, alpha)")
    return found


def coin_of(seed: int, input_id: int) -> float:
    """The coin of an input, uniform on (0, 1]: the first 53 bits of stream 3 of Philox with this key."""
    key, counter = np.array([seed, input_id], dtype=np.uint64), np.array([0, 0, 3, 0], dtype=np.uint64)
    return (int(np.random.Philox(key=key, counter=counter).random_raw()) // 2**11 + 1) / 2**53


def judged(row: Row, header: Row) -> Judged:
    """What the counts of a row give, held against the bounds it states."""
    top, fresh = top_of(pilot_of(row), header), fresh_of(row)
    lower, upper = Fraction(row["p_lower"]), Fraction(row["p_upper"])
    if fresh is None:
        wrong = ["there is a bound without fresh samples"] if lower > 0 or upper < 1 else []
        return Judged(top=top, certified=False, radius=(Fraction(0), Fraction(0)), wrong=wrong)
    offsets = offsets_of(header)
    if offsets is not None:
        at = {b: Fraction(beta - offsets[top]) for b, beta in enumerate(offsets) if b != top}
        return above_thresholds(row, header, wins(fresh, row, at), top)
    wrong = list(_bounds(fresh, top, header, lower, upper))
    low, high = radius_of(row, header, lower, upper)
    certified = lower > upper and not (row.get("moved") and high == 0)
    return Judged(top=top, certified=certified, radius=(low, high), wrong=wrong)


def above_thresholds(row: Row, header: Row, atoms: Sequence[Atom], top: int) -> Judged:
    """The same where events have thresholds, and the one with the least margin above its threshold binds."""
    lower, upper = Fraction(row["p_lower"]), Fraction(row["p_upper"])
    if not (0 <= lower <= 1 and 0 <= upper <= 1) or not 0 <= upper - (1 - lower) <= TOLERANCE:
        wrong = ["p_lower and p_upper must lie in [0, 1] and add up to 1"]
        return Judged(top=top, certified=False, radius=(Fraction(0), Fraction(0)), wrong=wrong)
    moved = Fraction(row.get("moved") or 0)
    (low, high), wrong = judged_margin(row, header, atoms, lower)
    if moved < 0:
        raise ValueError(f"an input cannot move by {float(moved)}")
    certified = high > moved if row["prediction"] >= 0 else low > moved  # what lies between is within rounding
    return Judged(
        top=top,
        certified=certified,
        radius=(max(Fraction(0), low - moved), max(Fraction(0), high - moved)),
        wrong=wrong,
    )


def wins(fresh: Row, at: Row, thresholds: dict[int, Fraction]) -> list[Atom]:
    """The atoms "the anchor beats b" that can bind, by the thresholds of b; at: the sigma and lambda of their noise.

    Left out is one that happened at least as often at every look as another with no smaller threshold.
    """
    tv, looks, binding = Fraction(fresh.get("tv", 0)), [counts for _, counts, _ in seen(fresh)], list[int]()
    for b in sorted(thresholds, key=lambda b: (-thresholds[b], [counts[b] for counts in looks])):
        if not any(all(counts[a] <= counts[b] for counts in looks) for a in binding):
            binding.append(b)
    return [Atom(f"the wins against class {b}", thresholds[b], at, tv, partial(event_holds, fresh, b)) for b in binding]


def event_holds(fresh: Row, index: int, p: Fraction) -> bool:
    """Is p a lower bound on the probability of one of the events that were looked at?"""
    looks = [[n, [counts[index]], alpha] for n, counts, alpha in fresh["looks"]]
    return p <= 0 or (p < 1 and lower_holds({**fresh, "looks": looks}, p))


def _bounds(fresh: Row, top: int, header: Row, lower: Fraction, upper: Fraction) -> Iterator[str]:
    """p_lower and p_upper: true for the counts, and no further from them than the tolerance."""
    if not (0 <= lower <= 1 and 0 <= upper <= 1):
        yield "p_lower and p_upper must lie in [0, 1]"
        return
    tv, alpha = Fraction(fresh.get("tv", 0)), Fraction(header["alpha"])
    if lower > 0 and not lower_holds(fresh, lower + tv):
        yield f"p_lower is {float(lower)}, more than the counts allow"
    above = lower + tv + TOLERANCE
    if above < 1 and lower_holds(fresh, above):
        yield f"p_lower is {float(lower)}, less than the counts give"
    complement, n = 1 - lower, fresh["n"]
    others = max((c for i, c in enumerate(fresh["votes"]) if i != top), default=0)
    two = header["rule"]["bound"] == "two-class"
    if upper < complement and not (two and upper_holds(others, n, upper - tv, alpha)):
        yield f"p_upper is {float(upper)}, less than the counts allow"
    below = upper - TOLERANCE
    if below > complement or (two and below > tv and upper_holds(others, n, below - tv, alpha)):
        yield f"p_upper is {float(upper)}, more than the counts give"


def lower_holds(fresh: Row, p: Fraction, factor: Fraction = Fraction(1)) -> bool:
    """Is p a lower bound for every event, each at one of its looks, with this part of every look's alpha?"""
    coin = None if fresh.get("coin") is None else Fraction(fresh["coin"])
    looks = seen(fresh)
    columns = {tuple(column) for column in zip(*(counts for _, counts, _ in looks), strict=True)}
    if len(looks) == 1:
        columns = {min(columns)}  # tails fall as counts grow
    return all(
        any(_tail_fits(n, k, share * factor, p, coin) for (n, _, share), k in zip(looks, column, strict=True))
        for column in sorted(columns)
    )


def _tail_fits(n: int, k: int, share: Fraction, p: Fraction, coin: Fraction | None) -> bool:
    """Is ``P_p[X >= k] <= alpha``, or its randomised form (at k = n capped at one half)?"""
    if Fraction(binomial_tail(k, n, p)[1]) <= share:
        return True
    if coin is None or (k == n and Fraction(binomial_tail(n, n, p)[1]) > Fraction(1, 2)):
        return False
    at, above = (Fraction(binomial_tail(j, n, p)[1]) for j in (k, k + 1))
    return (1 - coin) * above + coin * at <= share


def upper_holds(k: int, n: int, p: Fraction, alpha: Fraction) -> bool:
    """Is ``P_p[X <= k] <= alpha / 10``, the rest of the split?"""
    return Fraction(binomial_tail(n - k, n, 1 - p)[1]) <= alpha * (1 - SPLIT)


def radius_of(row: Row, header: Row, lower: Fraction, upper: Fraction) -> tuple[Fraction, Fraction]:
    """Lower and upper bound on the radius of these bounds; 0 where they do not separate the class.

    The distance that an input was moved to the grid is subtracted.
    """
    moved = Fraction(row.get("moved") or 0)
    if moved < 0:
        raise ValueError(f"an input cannot move by {float(moved)}")
    if lower <= upper:
        return Fraction(0), Fraction(0)
    if header["norm"] == "l1":
        low = high = Fraction(row["lambda"]) * (lower - upper)
    else:
        half = Fraction(row["sigma"]) / 2
        (a_low, a_high), (b_low, b_high) = normal_quantile(lower), normal_quantile(upper)
        low, high = half * (a_low - b_high), half * (a_high - b_low)
    return max(Fraction(0), low - moved), max(Fraction(0), high - moved)
