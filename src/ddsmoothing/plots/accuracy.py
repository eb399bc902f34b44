"""Certified accuracy against radius, one curve a run, and the envelope of the fixed sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.analysis import acr, certified_accuracy, certified_accuracy_interval, envelope, held_radius
from ddsmoothing.bounds import floor_text
from ddsmoothing.claims import STATELESS
from ddsmoothing.plots.chosen import of_rule, once, one_axis
from ddsmoothing.plots.style import canvas, legend, line_styles, literal, norm_of, radius_axis, styled
from ddsmoothing.runs import Results
from ddsmoothing.tables import Table, fixed_group, heading, labelled, percent, side_by_side
from ddsmoothing.tables.facts import levels_of, votes_text

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

    A curve ends where it reaches 0. A run that says the same as one of another level is not drawn again. Stateless
    rules and a sigma for each input stand in panels of their own, fixed sigmas in both.

    Args:
        runs: Of one norm and unit, with labels.
    Raises:
        RunError: Norms or units differ.
    """
    axis = radius_axis(runs)
    (radii, drawn, best), shown = curves(runs), [run for run, _ in once(runs)]
    apart, named = panels(shown), set[str]()
    figure, places = canvas(7.0 if len(apart) == 1 else 11.0, 3.9 + 0.1 * len(drawn), columns=len(apart))

    def label_of(text: str) -> str:
        new = text not in named
        named.add(text)
        return literal(text) if new else "_"  # a legend names each curve once

    for axes, (title, members) in zip(places, apart.items(), strict=True):
        if best is not None:
            end, label = _until_zero(best[1]), label_of(ENVELOPE)
            axes.plot(radii[:end], best[1][:end], color=GREY, lw=5.5, label=label, zorder=1.8, drawstyle="steps-pre")
        for run, (text, values), style in zip(shown, drawn, line_styles(shown), strict=True):
            if run in members:
                _curve(axes, run, radii, values, label_of(text), style)
        axes.set(xlabel=axis, ylabel="certified accuracy (%)", xlim=(0.0, radii[-1]), ylim=(0.0, 100.0), title=title)
    legend(figure, [*([] if best is None else [ENVELOPE]), *(label for label, _ in drawn)])
    said = literal(heading(runs), TITLE) + f"\n{votes_text(runs)}; bands: 95 % intervals"
    if len(apart) > 1:
        figure.suptitle(said, fontsize=10)
    else:
        places[0].set_title(said)
    return figure


def panels(runs: Sequence[Results]) -> dict[str, list[Results]]:
    """The runs of each panel by its title: beside stateless rules stand fixed sigmas alone, all others apart."""
    beside = [run for run in runs if STATELESS.name in levels_of(run)]
    apart = [run for run in runs if run not in beside]
    if not apart or not any(of_rule(run) for run in beside):
        return {"": list(runs)}
    levels = dict.fromkeys(run.level for run in apart)
    others = [run for run in runs if not of_rule(run)]
    return {f"level {STATELESS.name}": beside, f"level {' and '.join(levels)}": others}


def _curve(
    axes: Axes,
    run: Results,
    radii: NDArray[np.float64],
    values: NDArray[np.float64],
    label: str,
    style: dict[str, Any],
) -> None:
    """One run's curve with its band."""
    end = _until_zero(values)
    axes.plot(radii[:end], values[:end], label=label, drawstyle="steps-pre", **style)
    above = radii[: int((values > 0.0).sum())]
    band = 100 * certified_accuracy_interval(run, above).reshape(-1, 2)
    axes.fill_between(above, band[:, 0], band[:, 1], color=style["color"], alpha=0.12, lw=0, step="pre")


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
