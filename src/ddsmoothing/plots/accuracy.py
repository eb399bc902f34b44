"""Certified accuracy against radius, one curve a run, and the envelope of the fixed sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.analysis import acr, certified_accuracy, certified_accuracy_interval, envelope, held_radius
from ddsmoothing.bounds import floor_text
from ddsmoothing.plots.chosen import once, one_axis
from ddsmoothing.plots.style import canvas, legend, line_styles, literal, norm_of, radius_axis, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Table, fixed_group, heading, labelled, percent, side_by_side
from ddsmoothing.tables.facts import votes_text

POINTS: Final = 400
ROWS: Final = 13  # of the table under the figure
TITLE: Final = 84  # characters a line
GREY: Final = "#9A9A9A"
STEPS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 50.0, 100.0)
ENVELOPE: Final = "envelope of the fixed sigmas (no one classifier)"
NO_CLASSIFIER: Final = "The envelope is the best fixed sigma at each radius; no single classifier attains it."

Curve = tuple[str, NDArray[np.float64]]


def applies(runs: Sequence[Results]) -> bool:
    """Runs of one norm and unit, with labels."""
    return one_axis(runs) and labelled(runs)


def _largest(runs: Sequence[Results]) -> float:
    return 1.05 * max(float(held_radius(run).max()) for run in runs) or 1.0


def curves(runs: Sequence[Results]) -> tuple[NDArray[np.float64], list[Curve], Curve | None]:
    """Radii ``(R,)``, the curve in per cent of each run that is drawn, and the envelope of fixed sigmas if any."""
    radii = np.linspace(0.0, _largest(runs), POINTS)
    drawn = [(label, 100 * certified_accuracy(run, radii)) for run, label in once(runs)]
    fixed = fixed_group(runs)
    return radii, drawn, (ENVELOPE, 100 * envelope(fixed, radii)) if fixed else None


def _until_zero(values: NDArray[np.float64]) -> int:
    """How many points of a falling curve are drawn: the first at 0 is the last of them."""
    return max(2, int((values > 0.0).sum()) + 1)


@styled
def certified_accuracy_figure(runs: Sequence[Results]) -> Figure:
    """Certified accuracy against radius, one curve a run with its 95 % band; between two points the lower is drawn.

    A curve ends where it reaches 0. A run that says the same as one of another level is not drawn again.

    Args:
        runs: Of one norm and unit, with labels.
    Raises:
        RunError: Norms or units differ.
    """
    axis = radius_axis(runs)
    (radii, drawn, best), shown = curves(runs), [run for run, _ in once(runs)]
    figure, (axes,) = canvas(height=3.9 + 0.1 * len(drawn))
    if best is not None:
        end = _until_zero(best[1])
        axes.plot(radii[:end], best[1][:end], color=GREY, lw=5.5, label=ENVELOPE, zorder=1.8, drawstyle="steps-pre")
    for run, (label, values), style in zip(shown, drawn, line_styles(shown), strict=True):
        end = _until_zero(values)
        axes.plot(radii[:end], values[:end], label=literal(label), drawstyle="steps-pre", **style)
        above = radii[: int((values > 0.0).sum())]
        band = 100 * certified_accuracy_interval(run, above).reshape(-1, 2)
        axes.fill_between(above, band[:, 0], band[:, 1], color=style["color"], alpha=0.12, lw=0, step="pre")
    axes.set(xlabel=axis, ylabel="certified accuracy (%)", xlim=(0.0, radii[-1]), ylim=(0.0, 100.0))
    legend(figure, [*([] if best is None else [ENVELOPE]), *(label for label, _ in drawn)])
    axes.set_title(literal(heading(runs), TITLE) + f"\n{votes_text(runs)}; bands: 95 % intervals")
    return figure


def certified_accuracy_text(runs: Sequence[Results]) -> str:
    """Alternative text: what each curve comes to."""
    parts = [
        f"Curves of certified accuracy against {norm_of(runs)} radius, falling from left to right. {heading(runs)}."
    ]
    for run, label in once(runs):
        start = percent(int(run.correct.sum()), len(run))
        mean = "" if run.stops_at_radius else f", average certified radius {floor_text(acr(run), 3)}"
        parts.append(f"{label}: {start} % at radius 0{mean}.")
    return " ".join([*parts, *side_by_side(runs)])


def certified_accuracy_table(runs: Sequence[Results]) -> Table:
    """The curves at some radii."""
    last, fixed = _largest(runs), fixed_group(runs)
    step = next(s for s in (*STEPS, last) if s * (ROWS - 1) >= last)
    radii = np.round(np.arange(int(last / step) + 1) * step, 10)
    columns = {label: _percents(certified_accuracy(run, radii), len(run)) for run, label in once(runs)}
    if fixed:
        columns["envelope of the fixed sigmas"] = _percents(envelope(fixed, radii), len(fixed[0]))
    return Table(
        title="Certified accuracy (%) by radius",
        columns=("radius", *columns),
        rows=tuple((f"{radius:g}", *cells) for radius, *cells in zip(radii, *columns.values(), strict=True)),
        notes=((NO_CLASSIFIER,) if fixed else ()) + side_by_side(runs),
    )


def _percents(shares: NDArray[np.float64], total: int) -> list[str]:
    return [percent(round(share * total), total) for share in shares.tolist()]
