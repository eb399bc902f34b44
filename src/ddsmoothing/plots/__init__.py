"""Figures of runs, the same bytes every time: SVG, PDF and PNG. They compute nothing that analysis does not.

Every figure is drawn by a function of runs alone. ``FIGURES`` says what there is, in the order it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from ddsmoothing.plots import accuracy, confidence, memory, paired, sigma
from ddsmoothing.plots.accuracy import certified_accuracy_figure
from ddsmoothing.plots.images import images_figure, images_table, images_text
from ddsmoothing.plots.style import save, svg_text
from ddsmoothing.runs import Results
from ddsmoothing.tables import Table


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One kind of figure.

    Attributes:
        title: what it shows.   applies: whether these runs have it.   draw: the figure.   text: what it shows in words,
            for readers who cannot see it.   table: its numbers.
    """

    title: str
    applies: Callable[[Sequence[Results]], bool]
    draw: Callable[[Sequence[Results]], Figure]
    text: Callable[[Sequence[Results]], str]
    table: Callable[[Sequence[Results]], Table]


FIGURES: Final[dict[str, Picture]] = {
    "certified_accuracy": Picture(
        title="Certified accuracy against radius",
        applies=accuracy.applies,
        draw=accuracy.certified_accuracy_figure,
        text=accuracy.certified_accuracy_text,
        table=accuracy.certified_accuracy_table,
    ),
    "sigma": Picture(
        title="Sigma of each input",
        applies=sigma.applies,
        draw=sigma.sigma_figure,
        text=sigma.sigma_text,
        table=sigma.sigma_table,
    ),
    "paired_radius": Picture(
        title="Radius with a chosen against a fixed sigma",
        applies=paired.applies,
        draw=paired.paired_figure,
        text=paired.paired_text,
        table=paired.paired_table,
    ),
    "confidence": Picture(
        title="Bounds on the top class's probability",
        applies=confidence.applies,
        draw=confidence.confidence_figure,
        text=confidence.confidence_text,
        table=confidence.confidence_table,
    ),
    "memory": Picture(
        title="Radii cut by the memory",
        applies=memory.applies,
        draw=memory.memory_figure,
        text=memory.memory_text,
        table=memory.memory_table,
    ),
}


def plot_certified_accuracy(runs: Sequence[Results], out: str | Path) -> list[Path]:
    """Certified accuracy against radius, one curve a run with its 95 % band.

    Args:
        runs: of one norm, with labels.   out: a folder, made if missing.
    Returns: the files written: ``certified_accuracy.svg``, ``.png`` and ``.pdf``.
    Raises: RunError where the norms differ or the folder cannot be written.
    """
    return save(certified_accuracy_figure(runs), out, "certified_accuracy")


__all__ = [
    "FIGURES",
    "Picture",
    "certified_accuracy_figure",
    "images_figure",
    "images_table",
    "images_text",
    "plot_certified_accuracy",
    "save",
    "svg_text",
]
