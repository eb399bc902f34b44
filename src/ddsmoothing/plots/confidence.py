"""How sure the smoothed classifier is: the lower bounds on the probabilities that certificates rest on.

With a plurality vote that is the top class's probability, with a pairwise one that of beating the strongest rival.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from ddsmoothing.plots.style import canvas, legend, line_styles, literal, styled
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables import Table, labels_of, percent
from ddsmoothing.tables.facts import bound_words, is_pointwise

MARKS: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)


def counted(runs: Sequence[Results]) -> list[Run]:
    """Runs whose bounds are those of their predictions: with counts, and not answered from a memory."""
    return [run for run in runs if isinstance(run, Run) and is_pointwise(run)]


def applies(runs: Sequence[Results]) -> bool:
    """Some run has bounds of its own."""
    return bool(counted(runs))


def _nines(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """``-log10(1 - p)``: 0.9 is 1, 0.99 is 2, so that what lies near 1 can be told apart."""
    return -np.log10(np.maximum(1.0 - p, 1e-12))


def _share(run: Run, p: NDArray[np.float64]) -> list[int]:
    """Inputs with a bound of at least p."""
    ordered = np.sort(run.p_lower)
    return [len(run) - int(below) for below in np.searchsorted(ordered, p, side="left")]


@styled
def confidence_figure(runs: Sequence[Results]) -> Figure:
    """Share of inputs whose lower bound is at least p, against p; a curve ends where it reaches 0."""
    shown = counted(runs)
    figure, (axes,) = canvas()
    last = max(float(run.p_lower.max()) for run in shown)
    grid = np.unique(np.concatenate([run.p_lower for run in shown] + [np.array([0.5, 1.0])]))
    grid = grid[grid >= 0.5]
    for run, label, style in zip(shown, labels_of(shown), line_styles(shown), strict=True):
        share = 100 * np.array(_share(run, grid)) / len(run)
        end = max(2, int((share > 0.0).sum()) + 1)
        axes.step(_nines(grid[:end]), share[:end], where="pre", label=literal(label), **style)
    marks = np.array([mark for mark in MARKS if mark <= last])
    axes.xaxis.set_major_locator(FixedLocator(_nines(marks).tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - 10**-value:.5g}"))
    axes.set(xlabel=f"lower bound on {bound_words(shown)}", ylabel="inputs with at least this bound (%)")
    axes.set(xlim=(_nines(np.array([0.5]))[0], 1.02 * _nines(np.array([max(last, 0.6)]))[0]), ylim=(0.0, 100.0))
    legend(figure, labels_of(shown))
    return figure


def confidence_text(runs: Sequence[Results]) -> str:
    """Alternative text: how many are above one half and above 0.99."""
    shown = counted(runs)
    parts = [f"Curves of the share of inputs whose lower bound on {bound_words(shown)} is at least p, against p."]
    for run, label in zip(shown, labels_of(shown), strict=True):
        half, sure = (percent(hits, len(run)) for hits in _share(run, np.array([0.5, 0.99])))
        parts.append(f"{label}: {half} % at 0.5, {sure} % at 0.99.")
    return " ".join(parts)


def confidence_table(runs: Sequence[Results]) -> Table:
    """The curves at some bounds."""
    shown = counted(runs)
    last = max(float(run.p_lower.max()) for run in shown)
    marks = np.array([mark for mark in MARKS if mark <= max(last, 0.5)])
    cells = [[percent(hits, len(run)) for hits in _share(run, marks)] for run in shown]
    return Table(
        title=f"Inputs (%) whose lower bound on {bound_words(shown)} is at least p",
        columns=("p", *labels_of(shown)),
        rows=tuple((f"{mark:g}", *values) for mark, *values in zip(marks.tolist(), *cells, strict=True)),
    )
