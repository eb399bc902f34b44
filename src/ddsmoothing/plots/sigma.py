"""Sigma, input by input: how it is spread, and the radius it came to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.plots.chosen import once, one_axis, own_sigma
from ddsmoothing.plots.style import RASTER, canvas, literal, norm_of, one_units, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Table
from ddsmoothing.tables.facts import abstained

BINS: Final = 24
TITLE: Final = 48  # characters a line
TICKS: Final = 6  # at most
ROWS: Final = 8  # of the table under the figure
# outcome, colour, marker, edge: told apart by shape too
OUTCOMES: Final = (("right class", "#0072B2", "o"), ("wrong class", "#D55E00", "x"), ("abstained", "#000000", "|"))


def applies(runs: Sequence[Results]) -> bool:
    """Some run has a sigma for each input; all of one norm and unit."""
    return bool(own_sigma(runs)) and one_axis(runs)


def _rows(runs: Sequence[Results]) -> list[list[tuple[Results, str]]]:
    """Data-dependent runs with their labels; those of the same sigmas on the same inputs stand in one row."""
    rows: list[list[tuple[Results, str]]] = []
    for run, label in once(own_sigma(runs)):
        row = next((row for row in rows if _same_sigma(row[0][0], run)), None)
        if row is None:
            rows.append([(run, label)])
        else:
            row.append((run, label))
    return rows


def _same_sigma(one: Results, other: Results) -> bool:
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.sigma, other.sigma)


def _edges(run: Results, bins: int) -> NDArray[np.float64]:
    """Geometric bins over the run's sigmas; its ends hold the smallest and the largest."""
    low, high = float(run.sigma.min()), float(run.sigma.max())
    edges = np.geomspace(low, high, bins + 1) if low < high else np.array([0.9 * low, 1.1 * low])
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def outcomes(run: Results) -> list[NDArray[np.bool_]]:
    """``(B,)`` masks: a certificate of the right class (or of any, without labels), of a wrong one, none."""
    none = abstained(run)
    right = ~none & np.array([row.label is None or row.label == row.prediction for row in run.rows])
    return [right, ~none & ~right, none]


@styled
def sigma_figure(runs: Sequence[Results]) -> Figure:
    """A histogram of sigma and, beside it, sigma against radius for each run that has these sigmas."""
    rows, units = _rows(runs), one_units(runs)
    columns = 1 + max(map(len, rows))
    figure, panels = canvas(3.7 * columns, 0.6 + 2.7 * len(rows), len(rows), columns)
    for at, row in enumerate(rows):
        left, *right = panels[at * columns : (at + 1) * columns]
        _histogram(left, row[0][0])
        for axes in right[len(row) :]:
            axes.set_axis_off()
        for axes, (run, label) in zip(right, row, strict=False):
            _scatter(axes, run)
            axes.set_title(literal(label, TITLE), loc="left", fontsize=9)
            axes.set_ylabel(f"{norm_of([run])} radius")
        for axes in (left, *right[: len(row)]):
            _log_axis(axes, row[0][0])
            axes.set_xlabel(f"sigma ({units})")
    return figure


def _histogram(axes: Axes, run: Results) -> None:
    axes.hist(run.sigma, bins=_edges(run, BINS).tolist(), color="#56B4E9", edgecolor="#003F5C", lw=0.8)
    axes.set(ylabel="inputs")
    axes.set_title(f"sigma of {len(run):,} inputs", loc="left", fontsize=9)


def _scatter(axes: Axes, run: Results) -> None:
    for mask, (name, colour, marker) in zip(outcomes(run), OUTCOMES, strict=True):
        axes.scatter(
            run.sigma[mask],
            run.radius[mask],
            s=14,
            c=colour,
            marker=marker,
            alpha=0.7,
            lw=0 if marker == "o" else 1.1,
            label=f"{name} ({int(mask.sum())})",
            rasterized=len(run) > RASTER,
        )
    axes.set_ylim(-0.03 * run.radius.max() - 0.005, None)
    axes.legend(loc="upper left", borderpad=0.3, handletextpad=0.2)


def _log_axis(axes: Axes, run: Results) -> None:
    """Sigma in octaves, with plain numbers."""
    low, high = float(run.sigma.min()), float(run.sigma.max())
    octaves = 2.0 ** np.arange(np.floor(np.log2(low)), np.ceil(np.log2(high)) + 1)
    octaves = octaves[:: -(-len(octaves) // TICKS)]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(octaves.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlim(low / 1.08, high * 1.08)


def sigma_text(runs: Sequence[Results]) -> str:
    """Alternative text: the spread of sigma."""
    parts = ["Left, histograms of sigma; right, each input's radius against its sigma."]
    for run, label in once(own_sigma(runs)):
        low, middle, high = (f"{v:.3g}" for v in np.quantile(run.sigma, [0.05, 0.5, 0.95]))
        related = ""
        if len(set(run.sigma.tolist())) > 1 and float(run.radius.std()) > 0.0:
            related = f"; correlation of sigma and radius {np.corrcoef(run.sigma, run.radius)[0, 1]:.2f}"
        parts.append(f"{label}: median sigma {middle}, 5 % below {low}, 5 % above {high}{related}.")
    return " ".join(parts)


def sigma_table(runs: Sequence[Results]) -> Table:
    """Inputs in bands of sigma, with what became of them."""
    rows = []
    for run, label in once(own_sigma(runs)):
        edges, kinds = _edges(run, ROWS), outcomes(run)
        band = np.clip(np.searchsorted(edges, run.sigma, side="right") - 1, 0, len(edges) - 2)
        for i, (low, high) in enumerate(pairwise(edges)):
            inside = band == i
            median = floor_text(float(np.median(run.radius[inside])), 3) if inside.any() else "-"
            counts = (str(int((inside & kind).sum())) for kind in kinds)
            rows.append((label, f"{low:.3g} - {high:.3g}", str(int(inside.sum())), *counts, median))
    return Table(
        title="Inputs by sigma",
        columns=("run", "sigma", "inputs", *(name for name, _, _ in OUTCOMES), "median radius"),
        rows=tuple(rows),
    )
