"""Figures of runs, the same bytes every time: SVG, PDF and PNG. They compute nothing that analysis does not.

Every figure is drawn by a function of runs alone, or of a run and its images. ``FIGURES`` and ``PHOTOS`` say what there
is, in the order it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from ddsmoothing.data import Dataset
from ddsmoothing.plots import accuracy, confidence, images, memory, paired, sigma
from ddsmoothing.plots.accuracy import certified_accuracy_figure, curves
from ddsmoothing.plots.images import images_figure
from ddsmoothing.plots.style import save, svg_text
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables import Table


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One kind of figure.

    Attributes:
        title: what it shows.
        applies: whether these runs have it.
        draw: the figure.
        text: what it shows in words, for readers who cannot see it.
        table: its numbers.
        panels: the runs of each of its panels by title, where some do not belong together.
    """

    title: str
    applies: Callable[[Sequence[Results]], bool]
    draw: Callable[[Sequence[Results]], Figure]
    text: Callable[[Sequence[Results]], str]
    table: Callable[[Sequence[Results]], Table]
    panels: Callable[[Sequence[Results]], dict[str, list[Results]]] = lambda runs: {"": list(runs)}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One kind of figure of a run's images.

    Attributes:
        title: what it shows.
        applies: whether this run has it.
        draw: the figure.
        text: what it shows in words.
        table: its numbers.
    """

    title: str
    applies: Callable[[Run], bool]
    draw: Callable[[Run, Dataset], Figure]
    text: Callable[[Run, Dataset], str]
    table: Callable[[Run, Dataset], Table]


FIGURES: Final[dict[str, Picture]] = {
    "certified_accuracy": Picture(
        title="Certified accuracy against radius",
        applies=accuracy.applies,
        draw=accuracy.certified_accuracy_figure,
        text=accuracy.certified_accuracy_text,
        table=accuracy.certified_accuracy_table,
        panels=accuracy.panels,
    ),
    "sigma": Picture(
        title="Sigma of each input",
        applies=sigma.applies,
        draw=sigma.sigma_figure,
        text=sigma.sigma_text,
        table=sigma.sigma_table,
    ),
    "paired_radius": Picture(
        title="What a chosen sigma changes of the radius",
        applies=paired.applies,
        draw=paired.paired_figure,
        text=paired.paired_text,
        table=paired.paired_table,
    ),
    "confidence": Picture(
        title="Bounds behind the radii",
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


PHOTOS: Final[dict[str, Photo]] = {
    "extremes": Photo(
        title="Smallest and largest sigma",
        applies=images.has_extremes,
        draw=images.extremes_figure,
        text=images.extremes_text,
        table=images.extremes_table,
    ),
    "images": Photo(
        title="Images at their own sigma",
        applies=lambda run: True,
        draw=images.images_figure,
        text=images.images_text,
        table=images.images_table,
    ),
}


def plot_certified_accuracy(runs: Sequence[Results], out: str | Path) -> list[Path]:
    """Certified accuracy against radius, one curve a run with its 95 % band.

    Args:
        runs: of one norm, with labels.
        out: a folder, made if missing.
    Returns: the files written: ``certified_accuracy.svg``, ``.png`` and ``.pdf``.
    Raises: RunError where the norms differ or the folder cannot be written.
    """
    return save(certified_accuracy_figure(runs), out, "certified_accuracy")


__all__ = [
    "FIGURES",
    "PHOTOS",
    "Figure",
    "Photo",
    "Picture",
    "certified_accuracy_figure",
    "curves",
    "images_figure",
    "plot_certified_accuracy",
    "save",
    "svg_text",
]
