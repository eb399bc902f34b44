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
from ddsmoothing.claims import ABSTAIN
from ddsmoothing.plots.style import RASTER, canvas, literal, norm_of, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Table, labels_of

BINS: Final = 24
TICKS: Final = 6  # at most
ROWS: Final = 8  # of the table under the figure
# outcome, colour, marker, edge: told apart by shape too
OUTCOMES: Final = (("right class", "#0072B2", "o"), ("wrong class", "#D55E00", "x"), ("abstained", "#000000", "|"))


def chosen(runs: Sequence[Results]) -> list[Results]:
    """The runs that have a sigma of its own for each input."""
    return [run for run in runs if run.header.sigma is None and bool(np.isfinite(run.sigma).all())]


def applies(runs: Sequence[Results]) -> bool:
    """Some run has a sigma for each input; all of one norm."""
    return bool(chosen(runs)) and len({run.header.norm for run in runs}) == 1


def _edges(run: Results, bins: int) -> NDArray[np.float64]:
    """Geometric bins over the run's sigmas; its ends hold the smallest and the largest."""
    low, high = float(run.sigma.min()), float(run.sigma.max())
    edges = np.geomspace(low, high, bins + 1) if low < high else np.array([0.9 * low, 1.1 * low])
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def outcomes(run: Results) -> list[NDArray[np.bool_]]:
    """``(B,)`` masks: a certificate of the right class (or of any, without labels), of a wrong one, none."""
    none = run.prediction == ABSTAIN
    right = ~none & np.array([row.label is None or row.label == row.prediction for row in run.rows])
    return [right, ~none & ~right, none]


@styled
def sigma_figure(runs: Sequence[Results]) -> Figure:
    """A histogram of sigma, and sigma against radius; one row of panels for each data-dependent run."""
    runs = chosen(runs)
    figure, panels = canvas(7.4, 0.6 + 2.7 * len(runs), len(runs), 2)
    for run, label, left, right in zip(runs, labels_of(runs), panels[::2], panels[1::2], strict=True):
        left.hist(run.sigma, bins=_edges(run, BINS).tolist(), color="#56B4E9", edgecolor="#003F5C", lw=0.8)
        left.set(ylabel="inputs")
        left.set_title(literal(label), loc="left")
        for mask, (name, colour, marker) in zip(outcomes(run), OUTCOMES, strict=True):
            right.scatter(
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
        right.set(ylabel=f"{norm_of([run])} radius", ylim=(-0.03 * run.radius.max() - 0.005, None))
        right.legend(loc="upper left", borderpad=0.3, handletextpad=0.2)
        for axes in (left, right):
            _log_axis(axes, run)
    for axes in panels[-2:]:
        axes.set_xlabel("sigma (pixels in [0, 1])")
    return figure


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
    runs = chosen(runs)
    parts = ["Left, histograms of sigma; right, each input's radius against its sigma."]
    for run, label in zip(runs, labels_of(runs), strict=True):
        low, middle, high = (f"{v:.3g}" for v in np.quantile(run.sigma, [0.05, 0.5, 0.95]))
        related = ""
        if len(set(run.sigma.tolist())) > 1 and float(run.radius.std()) > 0.0:
            related = f"; correlation of sigma and radius {np.corrcoef(run.sigma, run.radius)[0, 1]:.2f}"
        parts.append(f"{label}: median sigma {middle}, 5 % below {low}, 5 % above {high}{related}.")
    return " ".join(parts)


def sigma_table(runs: Sequence[Results]) -> Table:
    """Inputs in bands of sigma, with what became of them."""
    runs, rows = chosen(runs), []
    for run, label in zip(runs, labels_of(runs), strict=True):
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
