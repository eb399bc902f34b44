"""Figures of runs, the same bytes every time: SVG, PDF and PNG. It computes nothing that analysis does not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddsmoothing.analysis import certified_accuracy, certified_accuracy_interval
from ddsmoothing.errors import RunError, printable
from ddsmoothing.runs import Run

KINDS: Final = ("svg", "png", "pdf")
# Okabe and Ito's colours, told apart by colour-blind readers; line styles and widths tell them apart in grey
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
STYLES: Final = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
POINTS: Final = 400


def labels_of(runs: Sequence[Run]) -> list[str]:
    """What legends and tables call runs: level, partial or not, and the folder's name where two would be alike."""
    labels = [_label(run) for run in runs]
    return [
        f"{label}, {printable(run.name)}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _label(run: Run) -> str:
    mark = " (partial)" if run.partial else ""
    if run.header.sigma is None:
        return f"data-dependent sigma ({run.level}){mark}"
    text = f"fixed sigma {run.header.sigma:.4g}"
    if run.header.norm == "l1":
        text += f" (lambda {run.rows[0].lambda_:.4g})"
    return text + mark


def plot_certified_accuracy(runs: Sequence[Run], out: str | Path) -> list[Path]:
    """Certified accuracy against radius, one curve a run with its 95 % band.

    Args:
        runs: of one norm, with labels.   out: a folder, made if missing.
    Returns: the files written: ``certified_accuracy.svg``, ``.png`` and ``.pdf``.
    Raises: RunError where the norms differ or the folder cannot be written.
    """
    norms = {run.header.norm for run in runs}
    if len(norms) != 1:
        raise RunError(f"runs of different norms {sorted(norms)} do not share an axis; plot them one norm at a time.")
    norm = norms.pop().upper()
    largest = max(float(run.radius.max()) for run in runs)
    radii = np.linspace(0.0, 1.05 * largest or 1.0, POINTS)
    with mpl.rc_context({"svg.hashsalt": "ddsmoothing", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        chosen = cycle(("#D55E00", "#000000", "#7F3C8D"))
        for index, (run, text) in enumerate(zip(runs, labels_of(runs), strict=True)):
            adaptive = run.header.sigma_policy != "fixed"
            colour = next(chosen) if adaptive else COLOURS[index % len(COLOURS)]
            style = "-" if adaptive else STYLES[index % len(STYLES)]
            curve = 100 * certified_accuracy(run, radii)
            axes.plot(radii, curve, color=colour, ls=style, lw=2.4 if adaptive else 1.6, label=text.replace("$", r"\$"))
            band = 100 * certified_accuracy_interval(run, radii)
            axes.fill_between(radii, band[:, 0], band[:, 1], color=colour, alpha=0.12, lw=0)
        axes.set_xlabel(f"{norm} radius (pixels in [0, 1])")
        axes.set_ylabel("certified accuracy (%)")
        axes.set_xlim(0.0, radii[-1])
        axes.set_ylim(0.0, 100.0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
        sizes = sorted({len(run) for run in runs})
        axes.set_title(f"{' / '.join(map(str, sizes))} inputs, bands: 95 % intervals", fontsize=10)
        return _save(figure, Path(out), "certified_accuracy")


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in KINDS]
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, kind in zip(paths, KINDS, strict=True):
            figure.savefig(path, dpi=150, metadata=no_date[kind])
    except OSError as error:
        raise RunError(f"cannot write figures to {folder}: {error.strerror}.") from error
    return paths
