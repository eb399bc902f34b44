"""What a memory made of a run's rows, as far as the run alone shows it; see ``verify``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from ddsmoothing.verify.budget import NOTHING, one_number, too_small
from ddsmoothing.verify.counts import Judged, Row, counted, fresh_of, lower_holds, seen
from ddsmoothing.verify.shares import SHORT, certified_at, needed

KINDS: Final = ("kept", "cut", "answered", "abstained")
EQUAL: Final = 1e-12  # alphas, relatively
WORDS: Final = 1e-5  # the same, where a header gives one to six digits


def check_note(row: Row, header: Row, found: Judged) -> Iterator[str]:
    """What a memory made of a row: never more than its own certificate, unless a stored region answered."""
    note, kind = row["memory"], row["memory"]["kind"]
    if kind not in KINDS:
        yield f"the memory's kind is {kind!r}"
        return
    if row["reason"] != kind:
        yield f"reason is {row['reason']!r}, the memory's kind {kind!r}"
    if note["prediction"] != (found.top if found.certified else -1):
        yield f"the run's class is {note['prediction']}, which the counts do not give"
    if row["correct"] is not (
        None if row["label"] is None else row["prediction"] == row["label"] and row["radius"] > 0
    ):
        yield f"correct is {row['correct']}, which does not fit label, prediction and radius"
    yield from _share(note)
    yield from _floor(row, header)
    if kind == "answered":
        if note["by"] is None or row["prediction"] < 0:
            yield "an answered row names no region or no class"
        if note["certified"] > found.radius[1]:
            yield f"certified is {note['certified']}, more than the bounds give"
        return
    yield from _own(row, note)
    alpha = Fraction(header["alpha"] if note["alpha"] is None else min(note["alpha"], header["alpha"]))
    fresh = fresh_of(row)
    if fresh is not None:
        yield from certified_at(row, header, fresh, note["certified"], alpha)
    elif note["certified"]:
        yield f"certified is {note['certified']} without fresh samples"


def _share(note: dict[str, Any]) -> Iterator[str]:
    """The attempt and its alpha: of every row but those that a region answered, which made none."""
    attempt, alpha = note["attempt"], note["alpha"]
    if note["kind"] == "answered":
        if attempt is not None or alpha is not None:
            yield f"an answered row made no attempt, and has number {attempt} and alpha {alpha}"
    elif type(attempt) is not int or attempt < 1 or type(alpha) is not float or not 0 < alpha < 1:
        yield f"attempt is {attempt} with alpha {alpha}, expected a number from 1 on and a probability"


def _own(row: Row, note: dict[str, Any]) -> Iterator[str]:
    """Class and radius of a row that rests on its own certificate."""
    kind, radius, certified = note["kind"], row["radius"], note["certified"]
    if kind == "abstained" and (row["prediction"] != -1 or radius != 0):
        yield "an abstained row has a class or a radius"
    if kind == "abstained" and certified:
        yield f"an abstained row was certified {certified}"
    if kind != "abstained" and row["prediction"] != note["prediction"]:
        yield f"prediction is {row['prediction']}, that of its certificate {note['prediction']}"
    if radius > certified:
        yield f"radius is {radius}, more than the {certified} that was certified"
    if kind == "kept" and radius < certified - SHORT * Fraction(1 + certified):
        yield f"radius is {radius}, less than the {certified} that was certified and kept"
    if kind == "kept" and note["by"] is not None:
        yield f"a kept row was cut by region {note['by']}"
    if radius and note["region"] is None:
        yield "it has a radius, and names no region of the memory"


def _floor(row: Row, header: Row) -> Iterator[str]:
    """The radius that holds in any order: at every sigma of the run's set, from counts of its own, at full alpha."""
    note, top = row["memory"], row["prediction"]
    floor, parts = note.get("floor"), note.get("floor_measurements") or []
    if not floor:
        return
    if not parts or [part["sigma"] for part in parts] != list(header["policy"].get("sigma_grid") or ()):
        yield "the floor has no counts for every sigma of the run's set"
        return
    if top < 0 or top != note["prediction"]:
        yield f"the floor is {floor} without a class that the run's own certificate gives"
        return
    for part in parts:
        at = dict(row, sigma=part["sigma"], **{"lambda": math.sqrt(3) * part["sigma"]})
        events = part["wins"] if "wins" in part else [part["votes"][top]]
        looks = seen(part)
        wrong = list(counted(dict(part, slot=0), header["num_classes"], at))
        if wrong or len(looks) != 1 or looks[0][:2] != (part["n"], events) or part.get("coin") is not None:
            yield "the counts of the floor contradict themselves"
            return
        if ("wins" in part) != (header["rule"]["vote"] == "pairwise") or part.get("anchor", top) != top:
            yield "the counts of the floor are not of the row's class"
            return
        if row["noise"] == "grid":
            yield from (f"of the floor: {text}" for text in too_small(part, at, header, _size(row, header)))
        if looks[0][2] > Fraction(header["alpha"]) or not lower_holds(
            part, needed(at, header, Fraction(floor)) + Fraction(part.get("tv", 0))
        ):
            yield f"the floor is {floor}, more than the counts at sigma {part['sigma']} give"


def _size(row: Row, header: Row) -> int:
    """Numbers in one input, as the row's own budget says, which is checked against those of all others."""
    one = one_number(row, header)
    return round(Fraction(row["measurements"][0].get("tv", 0)) / one) if one > NOTHING else 1


class Shares:
    """The attempts of a run's rows and their shares of the memory's risk, held against each other."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, int, float]] = []  # id, line, attempt, alpha

    def add(self, row: Row, line: int) -> None:
        """A row in which nothing was found wrong."""
        note = row["memory"]
        if note["attempt"] is not None:
            self._seen.append((row["id"], line, note["attempt"], note["alpha"]))

    def wrong(self, header: Row) -> Iterator[tuple[int | None, int | None, str]]:
        """Line, id and text: attempts go up with ids, and alpha is the same for all, or falls with their square."""
        rows = sorted(self._seen)
        for before, (key, line, attempt, _) in pairwise(rows):
            if attempt <= before[2]:
                yield line, key, f"attempt is {attempt}, after attempt {before[2]} of input {before[0]}"
        if not rows:
            return
        _, _, first, alpha = rows[0]
        kind, stated = stated_risk(header)
        misfits = [
            [row for row in rows if not math.isclose(row[3], alpha * (first / row[2]) ** power, rel_tol=EQUAL)]
            for power, name in ((0, "alpha"), (2, "delta"))
            if kind in (None, name)
        ]
        for key, line, attempt, mine in min(misfits, key=len):
            yield line, key, f"alpha is {mine} at attempt {attempt}, that of input {rows[0][0]} at {first} is {alpha}"
        total = alpha if kind == "alpha" else alpha * math.pi**2 * first**2 / 6
        if stated is not None and not math.isclose(total, stated, rel_tol=WORDS):
            yield None, None, f"the memory's {kind} is {stated}, attempt {first} has alpha {alpha}"


def stated_risk(header: Row) -> tuple[str | None, float | None]:
    """The risk that a header says its memory had: ``alpha`` of each attempt or ``delta`` of all; None without one."""
    said = (header.get("config") or {}).get("memory") or {}
    found = re.match(r"(alpha|delta)=(\S+) for ", str(said.get("risk", "")))
    return (None, None) if found is None else (found[1], float(found[2]))
