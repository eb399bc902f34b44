"""What a sigma for each input changes of the radius that a fixed one gives, input by input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.plots.chosen import of_rule, one_axis, own_sigma
from ddsmoothing.plots.style import RASTER, canvas, literal, norm_of, radius_axis, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Paired, Table, labelled, labels_of, paired, same_inputs
from ddsmoothing.tables.facts import levels_of

COLUMNS: Final = 2
TITLE, AXIS = 50, 34  # characters a line
NEAR: Final = 0.22  # of the largest fixed radius: closer than this to a side panel's name there is no tick
GAP, ROOM = 0.05, 0.75  # of the largest fixed radius: before a side panel of ties, and the width of all inputs there
# change, colour, marker: told apart by shape too
CHANGES: Final = (("won", "#0072B2", "^"), ("lost", "#D55E00", "v"), ("equal", "#000000", "o"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A data-dependent run beside a fixed one: what they are called, and their radii."""

    ours: str
    theirs: str
    both: Paired

    @property
    def change(self) -> NDArray[np.float64]:
        """``(B,)`` what the sigma of its own adds to the fixed radius."""
        return self.both.ours - self.both.theirs

    @property
    def counts(self) -> str:
        """In words."""
        won, lost, equal = self.both.counts
        return f"{won} won, {lost} lost, {equal} equal"


def _pairs(runs: Sequence[Results]) -> list[Pair]:
    """Every data-dependent run beside every fixed one it may be compared with."""
    if not labelled(runs):
        return []
    names = [(run, label) for run, label in zip(runs, labels_of(runs), strict=True) if not run.stops_at_radius]
    return [
        Pair(ours=ours, theirs=theirs, both=paired(run, base))
        for run, ours in names
        if own_sigma([run]) or of_rule(run)
        for base, theirs in names
        if base.header.sigma is not None and run.header.norm == base.header.norm and levels_of(run) & levels_of(base)
        if same_inputs(run, base, some=True)
    ]


def applies(runs: Sequence[Results]) -> bool:
    """A data-dependent and a fixed run of one level on the same inputs; all of one norm and unit."""
    return one_axis(runs) and bool(_pairs(runs))


@styled
def paired_figure(runs: Sequence[Results]) -> Figure:
    """One panel a pair: how each input's radius changes, against its radius with the fixed sigma.

    Inputs without a radius there, and those that share its largest one, stand beside the axis in order of their change,
    where they would lie on top of each other.
    """
    pairs, axis = _pairs(runs), radius_axis(runs, "radius with the fixed sigma")
    columns = min(len(pairs), COLUMNS)
    rows = math.ceil(len(pairs) / columns)
    figure, panels = canvas(0.6 + 4.0 * columns, 0.8 + 3.1 * rows, rows, columns)
    for pair, axes in zip(pairs, panels, strict=False):
        _panel(axes, pair)
        axes.set_xlabel(literal(axis, TITLE), fontsize=8)
        axes.set_ylabel(literal(f"change of the {norm_of(runs)} radius", AXIS), fontsize=8)
        axes.set_title(literal(f"{pair.ours} against {pair.theirs}: {pair.counts}", TITLE), fontsize=8.5)
    for axes in panels[len(pairs) :]:
        axes.set_axis_off()
    text = "Change of the radius of the right class (else 0); each point is one input"
    figure.suptitle(literal(text, TITLE * columns), fontsize=10)
    return figure


def _panel(axes: Axes, pair: Pair) -> None:
    x, ends = _places(pair)
    axes.axhline(0.0, color="#000000", lw=0.9, ls="--")
    change = pair.change
    for mask, (_, colour, marker) in zip((change > 0.0, change < 0.0, change == 0.0), CHANGES, strict=True):
        axes.scatter(x[mask], change[mask], s=12, c=colour, marker=marker, alpha=0.6, lw=0, rasterized=len(x) > RASTER)
    largest = float(pair.both.theirs.max()) or 1.0
    ticks = {float(tick): f"{tick:g}" for tick in MaxNLocator(4).tick_values(0.0, largest) if 0.0 <= tick <= largest}
    for low, high, name in ends:
        axes.axvspan(low, high, color="#000000", alpha=0.05, lw=0)
        middle = (low + high) / 2.0
        ticks = {tick: text for tick, text in ticks.items() if abs(tick - middle) > NEAR * largest} | {middle: name}
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    axes.set_xlim(min([-GAP * largest, *(low for low, _, _ in ends)]), max([1.05 * largest, *(h for _, h, _ in ends)]))


def _places(pair: Pair) -> tuple[NDArray[np.float64], list[tuple[float, float, str]]]:
    """Where each input stands, and the side panels: from, to, name."""
    theirs, change = pair.both.theirs, pair.change
    largest = float(theirs.max())
    x, ends = theirs.copy(), []
    none, most = theirs == 0.0, (theirs == largest) & (largest > 0.0)
    unit = largest or 1.0
    for ties, sign, name in ((none, -1.0, "none"), (most, 1.0, "largest")):
        if (count := int(ties.sum())) < 2:
            continue
        width = unit * (0.2 + ROOM * count / len(theirs))
        start = (0.0 if sign < 0 else largest) + sign * GAP * unit
        rank = np.argsort(np.argsort(change[ties], kind="stable"), kind="stable")
        low = start - width if sign < 0 else start
        x[ties] = low + width * (0.06 + 0.88 * rank / max(1, count - 1))
        ends.append((low, low + width, f"{name}\n{count:,}"))
    return x, ends


def paired_text(runs: Sequence[Results]) -> str:
    """Alternative text: who won and who lost."""
    parts = ["How each input's radius changes with its own sigma, against its radius with a fixed sigma."]
    for pair in _pairs(runs):
        won, lost, equal = pair.both.counts
        parts.append(f"{pair.ours} against {pair.theirs}: {won} inputs won radius, {lost} lost, {equal} stayed equal.")
    return " ".join(parts)


def paired_table(runs: Sequence[Results]) -> Table:
    """Inputs that won and lost radius."""
    rows = []
    for pair in _pairs(runs):
        worst, mean, best = (
            floor_text(float(value), 3) for value in (pair.change.min(), pair.change.mean(), pair.change.max())
        )
        counts = (f"{count:,}" for count in (len(pair.change), *pair.both.counts))
        rows.append((pair.ours, pair.theirs, *counts, mean, worst, best))
    return Table(
        title="Radius won and lost against a fixed sigma",
        columns=("run", "against", "inputs", "won", "lost", "equal", "mean change", "worst", "best"),
        rows=tuple(rows),
    )
