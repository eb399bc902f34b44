"""The tables and the figure of docs/stateless.md, from the counts of ``stateless.py``. It draws nothing.

Fits are made anew from the kept counts of training images; designs are chosen by cross-validation on these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import stateless_counts as kept
from ddsmoothing.bounds import floor_text
from ddsmoothing.tables import Table, ceil_text, markdown, percent, percent_up
from public_rows import RADII, difference, resampled
from stateless_designs import (
    BELOW,
    SHIRT,
    Fit,
    K,
    capped,
    chosen,
    designs,
    fixed_designs,
    pointwise,
    promised,
    remembered,
)
from stateless_rules import Certificates, Draws, two_class

START, END = "<!-- python benchmarks/stateless.py --tables -->\n", "<!-- end -->\n"
FEWEST = 6  # sigmas that make a front
CUT = 2.0  # of radii in the second mean radius
GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
FIXED = ("one-class", "two-class", "pairwise", "pairwise + offsets")


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows on the same images.

    Attributes:
        networks: one, or one for each sigma.   samples: in all, of an image.   parts: see ``stateless_counts.SIZES``.
        couples: sigmas of tables and of routing.   searched: sigmas that pointwise rows choose from.
        selector: whether one is tried as a gate.
    """

    title: str
    networks: str | tuple[str, ...]
    sigmas: tuple[float, ...]
    samples: int
    parts: tuple[str, ...]
    couples: tuple[tuple[float, ...], ...]
    searched: tuple[float, ...]
    selector: bool = False

    def draws(self, split: str, *parts: str) -> Draws:
        """Counts on a split, behind those of all sigmas the selector's."""
        names, sigmas = self.counted
        return kept.draws(names, split, sigmas, *parts)

    @property
    def counted(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Networks and their sigmas, and the selector with its own."""
        names = (self.networks,) * len(self.sigmas) if isinstance(self.networks, str) else self.networks
        more = (("selector",), (kept.GATE,)) if self.selector else ((), ())
        return names + more[0], self.sigmas + more[1]


PARTS = {2100: ("few",), 10_100: ("few", "many"), 50_100: ("few", "many", "most")}  # of samples in all


def _section(title: str, networks: str | tuple[str, ...], samples: int, **options: Any) -> Section:
    return Section(title=title, networks=networks, samples=samples, parts=PARTS[samples], **options)


_SHIPPED = partial(_section, "the shipped CNN", "shipped", selector=True)
_CONDITIONAL = partial(
    _section,
    "the shipped CNN that is told sigma",
    "conditional",
    sigmas=(0.25, 0.5, 1.0, 1.2),
    couples=((0.25, 1.0), (0.5, 1.0), (0.5, 1.2), (0.25, 1.2)),
    searched=(0.25, 0.5, 1.0, 1.2),
)
_EXPERTS = partial(
    _section,
    "three Gaussian experts",
    ("gaussian-0.25", "gaussian-0.5", "gaussian-1"),
    sigmas=(0.25, 0.5, 1.0),
    couples=((0.25, 0.5), (0.25, 1.0), (0.5, 1.0)),
    searched=(0.25, 0.5, 1.0),
)
SECTIONS = (
    _SHIPPED(
        2100,
        sigmas=(0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0),
        couples=((0.5, 1.0), (0.7, 1.2), (0.5, 1.2), (0.25, 1.2), (0.5, 0.7, 1.0, 1.2)),
        searched=(0.5, 0.7, 1.0, 1.2),
    ),
    _SHIPPED(
        10_100,
        sigmas=(0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5),
        couples=((0.5, 1.0), (0.7, 1.2), (0.5, 1.2), (0.5, 0.7, 1.0, 1.2)),
        searched=(0.5, 0.7, 1.0, 1.2),
    ),
    _SHIPPED(
        50_100,
        sigmas=(0.5, 1.0, 1.2),
        couples=((0.5, 1.0), (0.5, 1.2), (0.5, 1.0, 1.2)),
        searched=(0.5, 1.0, 1.2),
    ),
    _CONDITIONAL(2100),
    _CONDITIONAL(10_100),
    _EXPERTS(2100),
    _EXPERTS(10_100),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """Certificates of one rule.

    Attributes:
        name, note: of the rule and of its parameters.   vote: of the fixed rows it is held against.
        kind: ``fixed``, ``stateless``, or the other level it is of.
        promise: worth in cross-validation, 0 where it was not looked at.
    """

    name: str
    note: str
    vote: str
    kind: str
    label: NDArray[np.int64]
    found: Certificates
    promise: float = 0.0

    @property
    def right(self) -> NDArray[np.bool_]:
        """``(B,)`` certified, and right."""
        return (self.found.prediction == self.label) & (self.found.radius > 0.0)

    @property
    def held(self) -> NDArray[np.float64]:
        """``(B,)`` radius, 0 where not right."""
        return np.where(self.right, self.found.radius, 0.0)

    def at(self, radius: float) -> NDArray[np.bool_]:
        """``(B,)`` certified and right at a radius."""
        return self.right & (self.found.radius >= radius)


def rows_of(section: Section) -> list[Row]:
    """All of a section, fixed ones first."""
    training, test = section.draws("train", "fit"), section.draws("test", *section.parts)
    fit, n, rows = Fit(draws=training), section.samples, []

    def add(name: str, note: str, vote: str, kind: str, found: Certificates, promise: float = 0.0) -> Row:
        one = Row(name=name, note=note, vote=vote, kind=kind, label=test.label, found=found, promise=promise)
        rows.append(one)
        return one

    fixed = promised(training, lambda fit: fixed_designs(fit, section.sigmas), n)
    goal = max(hope.acr for design, hope in fixed if design.family == "pairwise")
    for vote in FIXED:
        for s in section.sigmas if vote == "two-class" else ():
            add(vote, f"{s:g}", vote, "fixed", capped(two_class(test.at((s,)), n), (s,), n))
        for design, hope in fixed:
            if design.family == vote:
                add(vote, design.note, vote, "fixed", design.on(test, n), hope.worth)
    for design, hope in chosen(promised(training, lambda fit: designs(fit, section.couples), n), goal):
        vote = "one-class" if "cascade" in design.family else "pairwise" + " + offsets" * design.offsets
        add(design.family, design.note, vote, "stateless", design.on(test, n), hope.worth)
    for vote in ("one-class", "pairwise", "pairwise + offsets"):
        of = f"from {', '.join(f'{s:g}' for s in section.searched)}"
        one = add(vote, of, vote, "pointwise", pointwise(test.at(section.searched), vote, fit, n))
        if vote == "pairwise":
            add(vote, of, vote, "memory", remembered(one.found, test.id))
    return rows


def strongest(rows: list[Row], vote: str) -> Row:
    """The fixed row of a vote with the largest mean radius on the test images, which is in its favour."""
    return max((row for row in rows if row.kind == "fixed" and row.vote == vote), key=lambda row: row.held.mean())


def _difference(row: Row, other: Row) -> str:
    """Of the mean radii, with its interval; rounded outwards."""
    value, low, high = difference(row.held, other.held)
    return f"{floor_text(value, 3)} [{floor_text(low, 3)}, {ceil_text(high, 3)}]"


def front(row: Row, fixed: list[Row]) -> str:
    """How far the mean radius lies above the fixed rows' at this accuracy, on lines between two of them as well.

    The front is resampled with the row. None is shown of few sigmas, whose lines would lie too low.
    """
    count = len(row.label)
    picks = np.concatenate([np.arange(count)[None], resampled(count)])
    accuracy, radius = (
        np.stack([np.asarray(values, dtype=np.float64)[picks].mean(1) for values in columns])
        for columns in zip(*((one.right, one.held) for one in (row, *fixed)), strict=True)
    )
    mine, best = accuracy[0], np.full(len(picks), -np.inf)
    for i in range(1, len(accuracy)):
        best = np.where(accuracy[i] >= mine, np.maximum(best, radius[i]), best)
        for j in range(1, len(accuracy)):
            between = (accuracy[i] <= mine) & (accuracy[j] > mine)
            share = (mine - accuracy[i]) / np.where(between, accuracy[j] - accuracy[i], 1.0)
            best = np.where(between, np.maximum(best, radius[i] + share * (radius[j] - radius[i])), best)
    if len(fixed) < FEWEST or not np.isfinite(best[0]):
        return "-"
    best = np.where(np.isfinite(best), best, radius[1:][accuracy[1:].argmax(0), np.arange(len(picks))])
    above = radius[0] - best
    low, high = np.quantile(above[1:], [0.025, 0.975])
    return f"{floor_text(above[0], 3)} [{floor_text(low, 3)}, {ceil_text(high, 3)}]"


def main_table(section: Section, rows: list[Row]) -> Table:
    """Every row: mean radii, what went wrong, accuracy at all radii, and the best fixed row of the same vote."""
    lines, count = [], len(rows[0].label)
    for row in rows:
        wrong = (row.found.prediction >= 0) & (row.found.radius > 0.0) & ~row.right
        shirts = row.right[row.label == SHIRT]
        best = strongest(rows, row.vote)
        lines.append(
            (
                _name(row),
                row.note,
                f"{int(np.ceil(row.found.samples.mean())):,}",
                floor_text(row.held.mean(), 3),
                floor_text(np.minimum(row.held, CUT).mean(), 3),
                percent_up(int((row.found.prediction < 0).sum()), count),
                percent_up(int(wrong.sum()), count),
                percent(int(shirts.sum()), len(shirts)),
                *(percent(int(row.at(r).sum()), count) for r in RADII),
                f"best: {best.note}" if row is best else _difference(row, best),
            )
        )
        if row.kind == "fixed" and row.note == f"{section.sigmas[-1]:g}":
            lines.append(_envelope(rows, row.vote, count))
    columns = ("rule", "sigma", "forwards", "ACR", f"ACR, cut at {CUT:g}", "abstained", "wrong", "shirts")
    return Table(
        title=f"{section.title}: {count:,} test images, {section.samples:,} forward passes at most",
        columns=(*columns, *(f"{r:g}" for r in RADII), "ACR against the best fixed sigma of the same vote"),
        rows=tuple(lines),
    )


def _envelope(rows: list[Row], vote: str, count: int) -> tuple[str, ...]:
    """What no classifier reaches: at each radius the best of the fixed rows."""
    mine = [row for row in rows if row.kind == "fixed" and row.vote == vote]
    best = [percent(max(int(row.at(r).sum()) for row in mine), count) for r in RADII]
    return (f"{vote}, envelope", "-", "-", "-", "-", "-", "-", "-", *best, "-")


def _name(row: Row) -> str:
    level = {"pointwise": ", level pointwise", "memory": ", pointwise and memory"}
    return row.name + level.get(row.kind, "")


def gap_table(title: str, rows: list[Row]) -> Table:
    """How much of the gap below 0.5 between the best fixed pairwise row and the envelope stateless rows close."""
    best, count, lines = strongest(rows, "pairwise"), len(rows[0].label), []
    fixed = [row for row in rows if row.kind == "fixed" and row.vote == "pairwise"]
    top = [max(int(row.at(r).sum()) for row in fixed) for r in BELOW]
    base = [int(best.at(r).sum()) for r in BELOW]
    gap = sum(top) - sum(base)
    for row in rows:
        if row.kind == "stateless" or (row.kind, row.vote) == ("fixed", "pairwise + offsets"):
            hits = [int(row.at(r).sum()) for r in BELOW]
            share = "-" if gap == 0 else f"{(sum(hits) - sum(base)) * 100 // gap}"
            shown = [percent(one, count) for one in hits]
            others = [other for other in rows if other.kind == "fixed" and other.vote == row.vote]
            over = "-" if row.kind == "fixed" else front(row, others)
            lines.append((_name(row), row.note, *shown, share, _difference(row, best), over))
    shown_at = [f"{r:g}" for r in BELOW]
    ends = " and ".join(shown_at)
    return Table(
        title=f"{title}: the gap to the pairwise envelope below 0.5, and the front of fixed rows of the same vote",
        columns=(
            *("rule", "sigma", *shown_at),
            *("gap closed, %", f"ACR against pairwise {best.note}", "ACR above the front"),
        ),
        rows=tuple(lines),
        notes=(
            f"Best fixed pairwise row: {', '.join(percent(one, count) for one in base)} at {ends}; envelope: "
            f"{', '.join(percent(one, count) for one in top)}.",
        ),
    )


def aim_table(sections: list[tuple[Section, list[Row]]]) -> Table:
    """The stateless row that cross-validation favours, against the best fixed rows and the pointwise one."""
    lines = []
    for section, rows in sections:
        best = max((row for row in rows if row.kind in ("fixed", "stateless")), key=lambda row: row.promise)
        [pointwise_row] = [row for row in rows if row.kind == "pointwise" and row.vote == "one-class"]
        others = [strongest(rows, vote) for vote in FIXED[:3]] + [pointwise_row]
        name = f"{_name(best)}, {best.note}"
        shown = (f"{section.samples:,}", name, floor_text(best.held.mean(), 3))
        lines.append((section.title, *shown, *(_difference(best, other) for other in others)))
    columns = ("network", "forwards", "stateless row", "ACR", *(f"against fixed {vote}" for vote in FIXED[:3]))
    return Table(
        title="the stateless row that cross-validation on training images favours: ACR against other rows",
        columns=(*columns, "against pointwise one-class, another level"),
        rows=tuple(lines),
    )


def class_table(rows: list[Row]) -> Table:
    """Accuracy by class of the best fixed row of each vote and of the stateless rows."""
    shown = [strongest(rows, vote) for vote in FIXED] + [row for row in rows if row.kind == "stateless"]
    lines = []
    for row in shown:
        hits = [(int(row.right[row.label == c].sum()), int((row.label == c).sum())) for c in range(K)]
        lines.append((_name(row), row.note, *(percent(hit, of) for hit, of in hits)))
    return Table(title="certified and right by class, %", columns=("rule", "sigma", *GARMENTS), rows=tuple(lines))


def made() -> list[tuple[Section, list[Row]]]:
    """Every section whose counts are kept, with its rows."""
    return [(section, rows_of(section)) for section in SECTIONS if _kept(section)]


def _kept(section: Section) -> bool:
    names, sigmas = section.counted
    paths = kept.paths_of(names, "test", sigmas, *section.parts) + kept.paths_of(names, "train", sigmas, "fit")
    return all(path.exists() for each in paths for path in each)


def text(sections: list[tuple[Section, list[Row]]]) -> str:
    """All tables, in Markdown."""
    tables = [aim_table(sections), *(main_table(section, rows) for section, rows in sections)]
    for section, rows in sections:
        tables.append(gap_table(f"{section.title}, {section.samples:,} forward passes", rows))
    return markdown([*tables, class_table(sections[0][1])])


def figure(sections: list[tuple[Section, list[Row]]]) -> Figure:
    """Mean radius against accuracy: lines through the fixed rows of each vote, points for stateless rows."""
    lines = -(-len(sections) // 2)
    drawn = Figure(figsize=(10.0, 4.2 * lines), layout="constrained")
    marks: dict[str, Callable[[Row], bool]] = {
        "pair table": lambda row: row.name == "pair table",
        "pair table + offsets": lambda row: row.name == "pair table + offsets",
        "other stateless rules": lambda row: "pair table" not in row.name,
    }
    for i, (section, rows) in enumerate(sections):
        axes = drawn.add_subplot(lines, 2, i + 1)
        for vote in FIXED:
            mine = [row for row in rows if row.kind == "fixed" and row.vote == vote]
            axes.plot(*_points(mine), marker=".", linewidth=1.0, label=vote)
        for (label, of), mark in zip(marks.items(), "s^x", strict=True):
            mine = [row for row in rows if row.kind == "stateless" and of(row)]
            axes.plot(*_points(mine), mark, color="black", fillstyle="none", label=label)
        axes.set(title=f"{section.title}, {section.samples:,}", xlabel="certified accuracy (%)", ylabel="ACR")
        axes.grid(alpha=0.3)
    drawn.axes[0].legend(frameon=False, fontsize=8)
    return drawn


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [100.0 * float(row.right.mean()) for row in rows], [float(row.held.mean()) for row in rows]
