"""What is wrong with one row of a run, held against its own counts and the header; see ``verify``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from ddsmoothing.verify.arithmetic import LEVELS, grid_distance
from ddsmoothing.verify.counts import (
    TOLERANCE,
    Judged,
    Row,
    fresh_of,
    judged,
    lower_holds,
    measurements_of,
    needed,
    seen,
)

LARGEST_SIGMA: Final = 12.5
LARGEST_LEVELS: Final = 2**20
LARGEST_STEPS: Final = 70_000  # of the grid, in the noise's scale
MOST_STEPS: Final = 12_000.0  # of the grid, in all laws that are worked out together: some ten seconds
SHA_DIGITS: Final = frozenset("0123456789abcdef")


def check_row(row: Row, header: Row, tables: Tables) -> Iterator[str]:
    """What is wrong with one row, held against its own counts and the header."""
    yield from _identity(row, header)
    wrong = list(measurements_of(row, header))
    yield from wrong
    if wrong:
        return
    yield from _noise(row, header, tables)
    found = judged(row, header)
    yield from found.wrong
    if header["level"] == "memory":
        yield from _kept(row, header, found)
        return
    yield from _claims(row, found)
    if not found.wrong:
        yield from _radius(row, found)


def _identity(row: Row, header: Row) -> Iterator[str]:
    skip, most, shard = header["subset"]["skip"], header["subset"]["max"], header["subset"].get("shard")
    position, rest = divmod(row["id"], skip)
    if rest or row["id"] >= header["data"]["length"] or (most is not None and position >= most) or position < 0:
        yield "this input does not belong to the run's subset"
    elif shard is not None and position % shard[1] != shard[0] - 1:
        yield f"this input does not belong to shard {shard[0]} of {shard[1]}"
    yield from _sigma(row, header)
    if (row["choice"] is not None) != (header["sigma_policy"] == "search"):
        yield "a record of the sigma search stands with the policy search, and only there"
    if len(row["input_sha256"]) != 64 or not set(row["input_sha256"]) <= SHA_DIGITS:
        yield "input_sha256 is not a SHA-256"
    label = row["label"]
    if label is not None and (type(label) is not int or not 0 <= label < header["num_classes"]):
        yield f"label is {label!r}, expected one of {header['num_classes']} classes"


def _sigma(row: Row, header: Row) -> Iterator[str]:
    """The sigma is one that the run may choose."""
    policy, sigma = header["policy"], row["sigma"]
    low, high, grid = policy.get("sigma_min"), policy.get("sigma_max"), policy.get("sigma_grid")
    if header["sigma_policy"] == "fixed" and sigma != header["sigma"]:
        yield f"sigma is {sigma}, the run's fixed sigma {header['sigma']}"
    if (low is not None and sigma < low) or (high is not None and sigma > high):
        yield f"sigma is {sigma}, outside the run's range [{low}, {high}]"
    if grid is not None and sigma not in grid:
        yield f"sigma is {sigma}, not one of the run's"


def levels_of(header: Row) -> int:
    """Steps to the unit of the run's grid."""
    levels = header.get("levels", LEVELS)
    if type(levels) is not int or not 1 <= levels <= LARGEST_LEVELS:
        raise ValueError(f"levels is {levels!r}")
    return levels


class Tables:
    """Which noise laws are worked out: a fine grid takes seconds for each sigma, so that their number is bounded.

    Attributes:
        left_out: rows whose ``tv`` was not recomputed.
    """

    def __init__(self) -> None:
        self._taken: set[tuple[float, int]] = set()
        self._steps = 0.0
        self.left_out = 0

    def take(self, row: Row, header: Row) -> bool:
        """Whether a row's law may be worked out; one is always, and all of the 8-bit grid."""
        key = (float(row["sigma"]), levels_of(header))
        if key not in self._taken and key[1] > LEVELS:
            if self._taken and self._steps + key[0] * key[1] > MOST_STEPS:
                self.left_out += 1
                return False
            self._taken.add(key)
            self._steps += key[0] * key[1]
        return True


def implied_size(row: Row, header: Row, tables: Tables) -> int | None:
    """The number d of an input's numbers that its total-variation budget implies; None where that is not worked out."""
    fresh = fresh_of(row)
    if row["noise"] != "grid" or fresh is None or not tables.take(row, header):
        return None
    one = _one_coordinate(row, header)
    return round(Fraction(fresh.get("tv", 0)) / one) if one > Fraction(1, 2**80) else None


def _one_coordinate(row: Row, header: Row) -> Fraction:
    levels = levels_of(header)
    name, scale = ("gaussian", row["sigma"]) if header["norm"] == "l2" else ("uniform", row["lambda"])
    if scale * levels > LARGEST_STEPS:
        raise ValueError(f"noise of scale {scale} spans more than {LARGEST_STEPS} steps of the grid")
    return grid_distance(name, float(scale), levels)


def _noise(row: Row, header: Row, tables: Tables) -> Iterator[str]:
    """Scale of the noise and its total-variation budget."""
    sigma, half_width, tvs = row["sigma"], row["lambda"], [part.get("tv", 0) for part in row["measurements"]]
    if not 0 < sigma <= LARGEST_SIGMA:
        raise ValueError(f"sigma is {sigma}")
    if header["norm"] == "l2" and half_width is not None:
        yield "lambda belongs to uniform noise"
    if header["norm"] == "l1" and not math.isclose(half_width, math.sqrt(3) * sigma, rel_tol=1e-15):
        yield f"lambda is {half_width}, sqrt(3) sigma is {math.sqrt(3) * sigma}"
        return
    if len(set(tvs)) != 1:
        yield "pilot and certification have different tv, though their noise is of one scale"
    if row["noise"] not in ("grid", "float"):
        yield f"noise is {row['noise']!r}, expected grid or float"
    elif row["noise"] == "float":
        if any(tvs):
            yield f"tv is {max(tvs)}, expected 0 for float noise, where it is not known"
    elif tables.take(row, header):
        tv, one = Fraction(tvs[-1]), _one_coordinate(row, header)
        d = round(tv / one) if one > Fraction(1, 2**80) else 0
        off = abs(tv - d * one) if d else max(Fraction(0), tv - Fraction(1, 2**50))
        if off > tv / 10**6 + d * Fraction(1, 2**84) or (one > Fraction(1, 2**80) and not d):
            yield f"tv is {tvs[-1]}, expected a multiple of {float(one):.6g}, that of one number at this scale"


def _claims(row: Row, found: Judged) -> Iterator[str]:
    """Class, correctness and reason, which follow from the bounds and the distance the input was moved."""
    expected = found.top if found.certified else -1
    if row["prediction"] != expected:
        yield f"prediction is {row['prediction']}, the counts give {expected}"
    if row["correct"] is not (None if row["label"] is None else row["prediction"] == row["label"]):
        yield f"correct is {row['correct']}, which does not fit label and prediction"
    reasons = ("certified",) if found.certified else ("abstained",)
    if fresh_of(row) is not None and row["reason"] not in reasons:
        separates = "" if found.certified else "do not "
        yield f"reason is {row['reason']!r}, but the bounds {separates}separate the class"


def _radius(row: Row, found: Judged) -> Iterator[str]:
    """The radius: at most what the bounds give, and no further below it than the tolerance."""
    radius, (low, high) = Fraction(row["radius"]), found.radius
    if not found.certified:
        if radius:
            yield f"radius is {row['radius']} without a certificate"
    elif radius > high:
        yield f"radius is {row['radius']}, more than the {float(high):.9f} that the bounds give"
    elif radius < low * (1 - TOLERANCE) - TOLERANCE:
        yield f"radius is {row['radius']}, less than the {float(low):.9f} that the bounds give"


def _kept(row: Row, header: Row, found: Judged) -> Iterator[str]:
    """What a memory made of a row: never more than its own certificate, unless a stored region answered."""
    note, kind = row["memory"], row["memory"]["kind"]
    if kind not in ("kept", "cut", "answered", "abstained"):
        yield f"the memory's kind is {kind!r}"
        return
    if note["prediction"] != (found.top if found.certified else -1):
        yield f"the run's class is {note['prediction']}, which the counts do not give"
    if row["correct"] is not (
        None if row["label"] is None else row["prediction"] == row["label"] and row["radius"] > 0
    ):
        yield f"correct is {row['correct']}, which does not fit label, prediction and radius"
    yield from _floor(row, header)
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
    yield from _certified(row, header, note)


def _certified(row: Row, header: Row, note: dict[str, Any]) -> Iterator[str]:
    """The certificate at the alpha that the memory gave to it: every look's share shrinks by the same factor."""
    radius, fresh = Fraction(note["certified"]), fresh_of(row)
    alpha = Fraction(header["alpha"] if note["alpha"] is None else min(note["alpha"], header["alpha"]))
    if not radius:
        return
    if fresh is None:
        yield f"certified is {note['certified']} without fresh samples"
    elif header["rule"]["bound"] != "one-class":
        if radius > judged(row, header).radius[1]:
            yield f"certified is {note['certified']}, more than the bounds give"
    elif not lower_holds(
        fresh, needed(row, header, radius) + Fraction(fresh.get("tv", 0)), alpha / Fraction(header["alpha"])
    ):
        yield f"certified is {note['certified']}, more than the counts give at alpha {float(alpha):g}"


def _floor(row: Row, header: Row) -> Iterator[str]:
    """The radius that holds in any order: at every sigma of the run's set, from counts of its own, at full alpha."""
    note = row["memory"]
    floor, parts = note.get("floor"), note.get("floor_measurements") or []
    if not floor:
        return
    if [part["sigma"] for part in parts] != list(header["policy"].get("sigma_grid") or ()):
        yield "the floor has no counts for every sigma of the run's set"
        return
    for part in parts:
        at = dict(row, sigma=part["sigma"], **{"lambda": math.sqrt(3) * part["sigma"]})
        events = part["wins"] if "wins" in part else [part["votes"][row["prediction"]]]
        looks = seen(part)
        if sum(part["votes"]) != part["n"] or looks[-1][:2] != (part["n"], events) or len(looks) != 1:
            yield "the counts of the floor contradict themselves"
            return
        if ("wins" in part) != (header["rule"]["vote"] == "pairwise") or part.get("anchor", row["prediction"]) != row[
            "prediction"
        ]:
            yield "the counts of the floor are not of the row's class"
            return
        if looks[0][2] > Fraction(header["alpha"]) or not lower_holds(
            part, needed(at, header, Fraction(floor)) + Fraction(part.get("tv", 0))
        ):
            yield f"the floor is {floor}, more than the counts at sigma {part['sigma']} give"
