"""What a certified memory left of each radius, in the order of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.claims import level_named
from ddsmoothing.plots.chosen import one_axis
from ddsmoothing.plots.style import RASTER, canvas, literal, radius_axis, styled
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables import Table, labels_of

KINDS: Final = (
    ("kept", "#56B4E9", "o"),
    ("cut", "#D55E00", "v"),
    ("answered", "#009E73", "s"),
    ("abstained", "#000000", "|"),
)
TITLE, AXIS = 75, 30  # characters a line
PARTS: Final = 10  # of the order, in the table under the figure


def remembered(runs: Sequence[Results]) -> list[Run]:
    """Runs of level memory."""
    return [run for run in runs if isinstance(run, Run) and level_named(run.level).from_regions]


def applies(runs: Sequence[Results]) -> bool:
    """Some run is of level memory; all of one norm and unit."""
    return bool(remembered(runs)) and one_axis(runs)


def _notes(run: Run) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """``(B,)`` kinds and ``(B,)`` radii before the rules."""
    notes = [row.memory for row in run.rows]
    kinds = np.array(["abstained" if note is None else note.kind for note in notes])
    return kinds, np.array([0.0 if note is None else note.certified for note in notes])


def _rule(run: Run) -> str:
    memory = run.header.config.get("memory")
    return str(memory.get("rule")) if isinstance(memory, dict) else "online"


@styled
def memory_figure(runs: Sequence[Results]) -> Figure:
    """Each input's radius after the memory, in order, with what was cut off; one panel a run."""
    shown = remembered(runs)
    figure, panels = canvas(7.4, 0.7 + 2.9 * len(shown), len(shown), 1)
    for run, label, axes in zip(shown, labels_of(shown), panels, strict=True):
        kinds, before = _notes(run)
        order = np.arange(1, len(run) + 1)
        cut = kinds == "cut"
        if cut.any():
            axes.vlines(order[cut], run.radius[cut], before[cut], color="#D55E00", lw=1.2, label="cut off")
        for kind, colour, marker in KINDS:
            mask = kinds == kind
            axes.scatter(
                order[mask],
                run.radius[mask],
                s=14,
                c=colour,
                marker=marker,
                lw=1.1 if marker == "|" else 0,
                label=f"{kind} ({int(mask.sum())})",
                rasterized=len(run) > RASTER,
            )
        axes.set_title(literal(f"{label}, {_rule(run)}", TITLE), loc="left")
        axes.set(ylabel=literal(radius_axis([run]), AXIS), xlim=(0, len(run) + 1))
        axes.set_ylim(-0.03 * max(float(before.max()), 0.1), None)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, borderpad=0.2)
    panels[-1].set_xlabel("order of the inputs (all at once under the order-free rule)")
    return figure


def memory_text(runs: Sequence[Results]) -> str:
    """Alternative text: how many were kept, cut and answered."""
    shown = remembered(runs)
    parts = ["Each input's radius after the memory, in order; lines show what was cut off."]
    for run, label in zip(shown, labels_of(shown), strict=True):
        kinds, _ = _notes(run)
        counts = ", ".join(f"{int((kinds == kind).sum())} {kind}" for kind, _, _ in KINDS)
        parts.append(f"{label}: {counts}.")
    return " ".join(parts)


def memory_table(runs: Sequence[Results]) -> Table:
    """What happened in each tenth of the order."""
    shown, rows = remembered(runs), []
    for run, label in zip(shown, labels_of(shown), strict=True):
        kinds, before = _notes(run)
        for part in np.array_split(np.arange(len(run)), min(PARTS, len(run))):
            counts = (str(int((kinds[part] == kind).sum())) for kind, _, _ in KINDS)
            means = (floor_text(float(values[part].mean()), 3) for values in (before, run.radius))
            rows.append((label, f"{part[0] + 1} - {part[-1] + 1}", *counts, *means))
    return Table(
        title="Radii in the order of the queries",
        columns=("run", "order", *(kind for kind, _, _ in KINDS), "mean radius certified", "mean radius left"),
        rows=tuple(rows),
    )
