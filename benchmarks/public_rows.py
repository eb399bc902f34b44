"""The tables and the figure that follow from the counts of ``public_table.py``. It draws nothing and trains nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.analysis import acr, certified_accuracy, held_radius
from ddsmoothing.bounds import floor_text
from ddsmoothing.errors import RunError
from ddsmoothing.runs.imports import import_file
from ddsmoothing.tables import Table, markdown, percent, percent_up
from kept_counts import Counts

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
MORE_RADII = (*RADII[:-1], 1.75, 2.0, 2.25, 2.5)
RESAMPLES = 4000
START, END = "<!-- python benchmarks/public_table.py --tables -->\n", "<!-- end -->\n"


def public(folder: Path, ids: NDArray[np.int64]) -> dict[str, Counts]:
    """The public rows on these images, by ``METHOD_SIGMA``, from their tab-separated files."""
    found = {}
    for file in sorted(folder.glob("*_*.tsv")):
        with tempfile.TemporaryDirectory() as out:
            one = import_file(file, Path(out) / "import", sigma=float(file.stem.rpartition("_")[2]))
        place = {row.id: row for row in one.rows}
        rows = [place[i] for i in ids.tolist()]
        empty = np.zeros((len(rows), 0), dtype=np.int64)
        found[file.stem] = Counts(
            about={},
            id=ids,
            label=np.array([row.label for row in rows]),
            prediction=np.array([row.prediction for row in rows]),
            sigma=np.array([row.sigma for row in rows]),
            radius=np.array([row.radius for row in rows]),
            top=ids,
            anchor=ids,
            votes=empty,
            wins=empty,
            samples=np.full(len(rows), 100_100),
        )
    if not found:
        raise RunError(f"{folder} holds no METHOD_SIGMA.tsv, expected the public logs, tab-separated.")
    return found


def difference(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of paired differences over images with its 95 % bootstrap interval; the resampling is fixed."""
    values = mine - theirs
    means = values[resampled(len(values))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


@lru_cache(maxsize=8)
def resampled(count: int) -> NDArray[np.int64]:
    """``(RESAMPLES, count)`` which of so many images."""
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, count, count) for _ in range(RESAMPLES)])


def acr_text(one: Counts) -> str:
    """Average certified radius as tables show it."""
    return floor_text(acr(one), 3)


def percent_of(share: float, images: int) -> str:
    """A share of so many images in per cent, rounded down."""
    return percent(round(share * images), images)


def strongest(rows: dict[str, Counts]) -> str:
    """The row with the largest average certified radius."""
    return max(rows, key=lambda name: acr(rows[name]))


def accuracy_table(rows: dict[str, Counts], title: str) -> Table:
    """Certified accuracy, ACR, shares of what went wrong and the cost of each row."""
    lines = []
    for name, one in rows.items():
        values = certified_accuracy(one, MORE_RADII)
        wrong = int((~one.correct & (one.radius > 0.0)).sum())
        lines.append(
            (
                name,
                *(percent_of(value, len(one)) for value in values),
                acr_text(one),
                percent_up(int((one.prediction < 0).sum()), len(one)),
                percent_up(wrong, len(one)),
                f"{int(one.samples.mean()):,}",
            )
        )
    columns = ("row", *(f"{radius:g}" for radius in MORE_RADII), "ACR", "abstained %", "certified wrong %", "forwards")
    return Table(title=title, columns=columns, rows=tuple(lines))


def gain_table(mine: dict[str, Counts], others: dict[str, Counts]) -> Table:
    """Each row against the strongest public row by ACR, and at each radius against the strongest one there."""
    best, lines = strongest(others), []
    shares = {name: certified_accuracy(one, RADII) for name, one in others.items()}
    for name, one in mine.items():
        cells = [_interval(*difference(held_radius(one), held_radius(others[best])), 3)]
        for i, radius in enumerate(RADII):
            there = max(shares, key=lambda key: shares[key][i])
            pair = [(each.correct & (each.radius >= radius)) * 100.0 for each in (one, others[there])]
            cells.append(_interval(*difference(*pair), 1))
        lines.append((name, *cells))
    columns = ("row", f"ACR over {best}", *(f"{radius:g}" for radius in RADII))
    return Table(
        title=f"Gain over the envelope of {len(others)} public rows on the same images, with 95 % intervals",
        columns=columns,
        rows=tuple(lines),
        notes=("At each radius the strongest public row is another one; together they are no classifier.",),
    )


def _interval(value: float, low: float, high: float, digits: int) -> str:
    """A difference, rounded down, over its interval."""
    scale = 10**digits
    figures = [np.floor(figure * scale) / scale for figure in (value, low)] + [np.ceil(high * scale) / scale]
    return "{:+.{d}f}\n[{:.{d}f}, {:.{d}f}]".format(*figures, d=digits)


def text(mine: dict[str, Counts], others: dict[str, Counts]) -> str:
    """All tables, in Markdown."""
    made = [accuracy_table(mine, f"Rows of this package on the same {len(next(iter(mine.values()))):,} test images")]
    if others:
        best = sorted(others, key=lambda name: -acr(others[name]))[:6]
        rows = {f"public {name}": others[name] for name in best}
        told = {name: one for name, one in mine.items() if "conditional" in name}
        made = [
            accuracy_table(rows, f"The six strongest public rows on {len(next(iter(mine.values()))):,} test images"),
            *made,
        ]
        made.append(gain_table(told, others))
    return markdown(made)


def figure(mine: dict[str, Counts], others: dict[str, Counts], shown: Mapping[str, str]) -> Figure:
    """Certified accuracy by radius: the public rows in grey, those of ours to be shown in colour, with their labels."""
    radii = np.linspace(0.0, 3.0, 301)
    drawn = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = drawn.add_subplot()
    for i, one in enumerate(others.values()):
        label = f"{len(others)} published rows" if i == 0 else None
        axes.plot(radii, 100 * certified_accuracy(one, radii), color="0.75", linewidth=0.8, label=label)
    for name, label in shown.items():
        axes.plot(radii, 100 * certified_accuracy(mine[name], radii), linewidth=1.8, label=label)
    axes.set(xlabel="L2 radius, pixels in [0, 1]", ylabel="certified accuracy (%)", xlim=(0, 3), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return drawn
