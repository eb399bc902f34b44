"""Certified accuracy against radius, one curve a run, and the envelope of the fixed sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.analysis import acr, certified_accuracy, certified_accuracy_interval, envelope
from ddsmoothing.bounds import floor_text
from ddsmoothing.plots.style import canvas, line_styles, literal, norm_of, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Table, fixed_group, labelled, labels_of, percent, subset_text

POINTS: Final = 400
ROWS: Final = 13  # of the table under the figure
ENVELOPE: Final = "envelope of the fixed sigmas (no single classifier attains it)"


def applies(runs: Sequence[Results]) -> bool:
    """Runs of one norm, with labels."""
    return len({run.header.norm for run in runs}) == 1 and labelled(runs)


def _radii(runs: Sequence[Results], points: int) -> NDArray[np.float64]:
    largest = max(float(run.radius.max()) for run in runs)
    return np.linspace(0.0, 1.05 * largest or 1.0, points)


@styled
def certified_accuracy_figure(runs: Sequence[Results]) -> Figure:
    """Certified accuracy against radius, one curve a run with its 95 % band; between two points the lower is drawn.

    Args:
        runs: of one norm, with labels.
    Raises: RunError where the norms differ.
    """
    norm, radii = norm_of(runs), _radii(runs, POINTS)
    figure, (axes,) = canvas()
    if fixed := fixed_group(runs):
        axes.plot(
            radii,
            100 * envelope(fixed, radii),
            color="#9A9A9A",
            lw=5.5,
            label=ENVELOPE,
            zorder=1.8,
            drawstyle="steps-pre",
        )
    for run, text, style in zip(runs, labels_of(runs), line_styles(runs), strict=True):
        axes.plot(radii, 100 * certified_accuracy(run, radii), label=literal(text), drawstyle="steps-pre", **style)
        band = 100 * certified_accuracy_interval(run, radii)
        axes.fill_between(radii, band[:, 0], band[:, 1], color=style["color"], alpha=0.12, lw=0, step="pre")
    axes.set(xlabel=f"{norm} radius (pixels in [0, 1])", ylabel="certified accuracy (%)")
    axes.set(xlim=(0.0, radii[-1]), ylim=(0.0, 100.0))
    figure.legend(loc="outside lower center", ncols=2 if len(runs) > 1 else 1, frameon=False)
    axes.set_title(literal(f"{subset_text(runs)}; bands: 95 % intervals"))
    return figure


def certified_accuracy_text(runs: Sequence[Results]) -> str:
    """Alternative text: what each curve comes to."""
    parts = [f"Curves of certified accuracy against {norm_of(runs)} radius, falling from left to right."]
    for run, label in zip(runs, labels_of(runs), strict=True):
        start = percent(int(run.correct.sum()), len(run))
        mean = "" if run.stops_at_radius else f", average certified radius {floor_text(acr(run), 3)}"
        parts.append(f"{label}: {start} % at radius 0{mean}.")
    return " ".join(parts)


def certified_accuracy_table(runs: Sequence[Results]) -> Table:
    """The curves at some radii."""
    last = _radii(runs, 2)[-1]
    step = next(s for s in (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 50.0, 100.0, last) if s * (ROWS - 1) >= last)
    radii = np.round(np.arange(int(last / step) + 1) * step, 10)
    fixed = fixed_group(runs)
    names, columns = labels_of(runs), [certified_accuracy(run, radii) * len(run) for run in runs]
    cells = [
        [percent(round(float(hits)), len(run)) for hits in column] for run, column in zip(runs, columns, strict=True)
    ]
    if fixed:
        names = [*names, "envelope of the fixed sigmas"]
        hits = envelope(fixed, radii) * len(fixed[0])
        cells.append([percent(round(float(k)), len(fixed[0])) for k in hits])
    return Table(
        title="Certified accuracy (%) by radius",
        columns=("radius", *names),
        rows=tuple((f"{radius:g}", *values) for radius, *values in zip(radii, *cells, strict=True)),
        notes=("The envelope is the best fixed sigma at each radius; no single classifier attains it.",)
        if fixed
        else (),
    )
