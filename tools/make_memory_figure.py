"""Remake docs/images/memory.svg: certified balls of two sigmas as they are, and as a memory keeps them.

    python tools/make_memory_figure.py [FILE.svg]

The classifier is a strip of class 1 in the plane; sigma is .05 inside the strip and .3 outside, as a search for large
radii chooses. Takes a few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import ddsmoothing as dds
from ddsmoothing.memory import Answer, Binding, Found, Risk, Store
from ddsmoothing.memory.regions import Regions

POINTS = [(0.12, 0.35), (0.48, 0.6), (0.9, 0.55), (0.52, 0.25), (0.72, 0.2), (0.3, 0.8), (0.47, 0.88)]
COLOURS = ("#0072B2", "#D55E00")
BINDING = Binding(
    model="id:strip",
    transform="none",
    norm="l2",
    dtype="float64",
    precision="fp32",
    shape=(2,),
    num_classes=2,
    vote="pairwise",
)


class Strip(torch.nn.Module):
    """Class 1 where the first coordinate is within .1 of .5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = ((x[:, 0] - 0.5).abs() < 0.1).double()
        return torch.stack([1 - inside, inside], 1)


def certified() -> dds.Certification:
    """Pointwise certificates of POINTS."""
    x = torch.tensor(POINTS, dtype=torch.float64)
    sigma = np.where((x[:, 0] - 0.5).abs() < 0.1, 0.05, 0.3)
    smoothed = dds.SmoothedClassifier(Strip(), dds.L2Certificate(), num_classes=2)
    return smoothed.certify(x, sigma, n0=100, n=2000, seed=0)


def remembered(made: dds.Certification) -> list[Answer]:
    """The same certificates in a memory, one after another."""
    store, answers = Store.create(None, BINDING, Risk(alpha=0.001), seed=0), []
    regions = Regions(store)
    for i, point in enumerate(np.array(POINTS)):
        sketch = store.sketch.of(point[None])[0]
        found = Found(prediction=int(made.prediction[i]), radius=float(made.radius[i]), sigma=float(made.sigma[i]))
        with store.writing():
            answers.append(regions.look_up(point, sketch) or regions.settle(point, sketch, found, store.reserve()))
    return answers


def main() -> None:
    """Draw both panels."""
    made = certified()
    answers = remembered(made)
    with mpl.rc_context({"svg.hashsalt": "ddsmoothing", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.1), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        rows = [(int(c), float(r), "") for c, r in zip(made.prediction, made.radius, strict=True)]
        _panel(panels[0], "pointwise: balls of two classes overlap", rows)
        rows = [(one.prediction, one.radius, one.reason) for one in answers]
        _panel(panels[1], "memory: first come, later ones cut or answered", rows)
        path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/memory.svg")
        figure.savefig(path, metadata={"Date": None})
    print(path, [one.reason for one in answers])


def _panel(axes: mpl.axes.Axes, title: str, rows: list[tuple[int, float, str]]) -> None:
    axes.axvspan(0.4, 0.6, color=COLOURS[1], alpha=0.08, lw=0)
    for number, ((x, y), (label, radius, reason)) in enumerate(zip(POINTS, rows, strict=True), start=1):
        if reason != "answered":
            axes.add_patch(Circle((x, y), radius, color=COLOURS[label], alpha=0.25, lw=0))
            axes.add_patch(Circle((x, y), radius, fill=False, color=COLOURS[label], lw=1.2))
        axes.plot(x, y, "s" if label else "o", color=COLOURS[label], ms=4)
        axes.annotate(f"{number}" + (f" {reason}" if reason else ""), (x, y), (4, 4), textcoords="offset points")
    axes.set(title=title, xlim=(-0.15, 1.15), ylim=(-0.1, 1.2), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.title.set_fontsize(9)


if __name__ == "__main__":
    main()
