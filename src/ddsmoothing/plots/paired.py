"""Radius with a sigma for each input against radius with one fixed sigma, input by input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from ddsmoothing.bounds import floor_text
from ddsmoothing.plots.sigma import chosen
from ddsmoothing.plots.style import RASTER, canvas, literal, norm_of, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Paired, Table, labelled, labels_of, paired, same_inputs


def _pairs(runs: Sequence[Results]) -> list[tuple[str, str, Paired]]:
    """Labels and radii of every data-dependent run beside every fixed one it may be compared with."""
    if not labelled(runs):
        return []
    names = dict(zip(map(id, runs), labels_of(runs), strict=True))
    fixed = [run for run in runs if run.header.sigma is not None and not run.stops_at_radius]
    return [
        (names[id(run)], names[id(base)], paired(run, base))
        for run in chosen(runs)
        if not run.stops_at_radius
        for base in fixed
        if run.header.norm == base.header.norm and run.level == base.level and same_inputs(run, base, some=True)
    ]


def applies(runs: Sequence[Results]) -> bool:
    """A data-dependent and a fixed run of one level on the same inputs; all of one norm."""
    return len({run.header.norm for run in runs}) == 1 and bool(_pairs(runs))


@styled
def paired_figure(runs: Sequence[Results]) -> Figure:
    """One panel a pair: each input's radius with its own sigma against its radius with the fixed one."""
    norm, pairs = norm_of(runs), _pairs(runs)
    columns = min(len(pairs), 3 if len(pairs) != 4 else 2)
    rows = math.ceil(len(pairs) / columns)
    figure, panels = canvas(0.8 + 3.0 * columns, 0.7 + 3.1 * rows, rows, columns)
    for (ours, theirs, both), axes in zip(pairs, panels, strict=False):
        won, lost, equal = both.counts
        end = 1.05 * float(max(both.ours.max(), both.theirs.max())) or 1.0
        axes.plot([0.0, end], [0.0, end], color="#000000", lw=0.9, ls="--")
        for mask, colour, marker in (
            (both.ours > both.theirs, "#0072B2", "^"),
            (both.ours < both.theirs, "#D55E00", "v"),
            (both.ours == both.theirs, "#000000", "o"),
        ):
            axes.scatter(
                both.theirs[mask],
                both.ours[mask],
                s=12,
                c=colour,
                marker=marker,
                alpha=0.6,
                lw=0,
                rasterized=len(both.ids) > RASTER,
            )
        axes.set(xlim=(-0.02 * end, end), ylim=(-0.02 * end, end), aspect="equal")
        axes.set_xlabel(literal(f"radius, {theirs}"), fontsize=8)
        axes.set_ylabel(literal(f"radius, {ours}"), fontsize=8)
        axes.set_title(f"{won} won, {lost} lost, {equal} equal", fontsize=9)
    for axes in panels[len(pairs) :]:
        axes.set_axis_off()
    figure.suptitle(f"{norm} radius of the right class, else 0; each point is one input", fontsize=10)
    return figure


def paired_text(runs: Sequence[Results]) -> str:
    """Alternative text: who won and who lost."""
    parts = ["Scatter plots of each input's radius with its own sigma against its radius with a fixed sigma."]
    for ours, theirs, both in _pairs(runs):
        won, lost, equal = both.counts
        parts.append(f"{ours} against {theirs}: {won} inputs won radius, {lost} lost, {equal} stayed equal.")
    return " ".join(parts)


def paired_table(runs: Sequence[Results]) -> Table:
    """Inputs that won and lost radius."""
    rows = []
    for ours, theirs, both in _pairs(runs):
        change = both.ours - both.theirs
        worst, best = (floor_text(float(value), 3) for value in (change.min(), change.max()))
        counts = (str(count) for count in (len(change), *both.counts))
        rows.append((ours, theirs, *counts, floor_text(float(change.mean()), 3), worst, best))
    return Table(
        title="Radius won and lost against a fixed sigma",
        columns=("run", "against", "inputs", "won", "lost", "equal", "mean change", "worst", "best"),
        rows=tuple(rows),
    )
