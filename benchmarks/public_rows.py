"""Counts of the rows of ``public_table.py`` in a small file each, and the tables and the figure that follow.

It draws nothing and trains nothing. A file holds a run's header and, for each image, label, sigma, the pilot's answer
and all counts; reading it recomputes every radius by another path and refuses one that is too large.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from ddsmoothing.analysis import acr, certified_accuracy, held_radius
from ddsmoothing.bounds import floor_text
from ddsmoothing.errors import RunError
from ddsmoothing.runs import Run
from ddsmoothing.runs.imports import import_file
from ddsmoothing.tables import Table, markdown

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
CAP = 3.81  # the largest radius of the public rows: sigma 1 at n = 100,000
SAFE, CLOSE = 1e-12, 1e-6  # a claimed radius may lie so far above and below what SciPy makes of its counts
RESAMPLES = 4000
START, END = "<!-- python benchmarks/public_table.py --tables -->\n", "<!-- end -->\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """What was counted on B images of K classes, and the certificates that follow.

    Attributes:
        about: the run's header.   id, label, prediction, sigma, radius: ``(B,)``; -1 abstains.
        top: ``(B,)`` the pilot's class by votes, anchor by wins.   votes, wins: ``(B, K)`` of fresh samples.
    """

    about: dict[str, Any]
    id: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    sigma: NDArray[np.float64]
    radius: NDArray[np.float64]
    top: NDArray[np.int64]
    anchor: NDArray[np.int64]
    votes: NDArray[np.int64]
    wins: NDArray[np.int64]
    samples: NDArray[np.int64]
    stops_at_radius = False

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the answer is the right class."""
        return self.prediction == self.label

    def quantile(self, k: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.float64]:
        """``Phi^-1`` of the lower bound on a probability; -inf where nothing was counted."""
        lower = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, self.about["alpha"]), 0.0)
        return ndtri(lower)

    @cached_property
    def recomputed(self) -> NDArray[np.float64]:
        """``(B,)`` radius from the counts, as theory has it: the least margin over all rivals of the anchor."""
        offsets = np.array(self.about["rule"].get("offsets") or np.zeros(self.votes.shape[1]))
        n = np.maximum(self.votes.sum(1), 1)[:, None]
        margin = self.sigma[:, None] * self.quantile(self.wins, n) + offsets[self.anchor][:, None] - offsets[None, :]
        margin[np.arange(len(self)), self.anchor] = np.inf
        return np.maximum(margin.min(1), 0.0)

    def one_class(self) -> Counts:
        """The same samples under a plurality vote and the bound of the published rows."""
        n, k = self.votes.sum(1), self.votes[np.arange(len(self)), self.top]
        radius = np.maximum(self.sigma * self.quantile(k, np.maximum(n, 1)), 0.0)
        return replace(self, radius=radius, prediction=np.where(radius > 0.0, self.top, -1))

    def capped(self) -> Counts:
        """Radii cut at the largest one of the public rows, so that a larger sigma cannot swell their mean."""
        return replace(self, radius=np.minimum(self.radius, CAP))


def save(run: Run, path: Path, searched: int) -> None:
    """Keep a finished run's evidence; searched: samples an image that choosing its sigma took."""
    if run.partial:
        raise RunError(f"{run.path} is not finished, expected a whole run.")
    none = (0,) * run.header.num_classes
    columns: dict[str, Any] = {
        "id": ([row.id for row in run.rows], np.uint16),
        "label": ([row.label for row in run.rows], np.int8),
        "prediction": ([row.prediction for row in run.rows], np.int8),
        "sigma": ([row.sigma for row in run.rows], np.float64),
        "radius": ([row.radius for row in run.rows], np.float64),
        "top": ([int(np.argmax(row.pilot.votes)) for row in run.rows], np.int8),
        "anchor": ([row.fresh.anchor if row.fresh else 0 for row in run.rows], np.int8),
        "votes": ([row.fresh.votes if row.fresh else none for row in run.rows], np.uint32),
        "wins": ([row.fresh.wins if row.fresh else none for row in run.rows], np.uint32),
        "samples": ([row.samples + searched for row in run.rows], np.uint32),
    }
    about = run.header.model_dump(mode="json") | {"behaviour": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {name: np.array(values, dtype=kind) for name, (values, kind) in columns.items()}
    np.savez_compressed(path, about=np.array(json.dumps(about)), **packed)


def load(path: Path) -> Counts:
    """Read a row's evidence; RunError where a radius is not what its counts give."""
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files if name != "about"}
        whole = {name: values.astype(np.int64) for name, values in columns.items() if values.dtype.kind in "iu"}
        counts = Counts(about=json.loads(str(file["about"])), **columns | whole)
    above = counts.radius - counts.recomputed
    if len(wrong := counts.id[(above > SAFE) | ((above < -CLOSE) & (counts.prediction >= 0))]):
        raise RunError(f"{path}: the radius of input {wrong[0]} is not what its counts give; remake the file.")
    return counts


def joined(parts: list[Counts]) -> Counts:
    """Counts of one row on several sets of images, in the order of the images."""
    order = np.argsort(np.concatenate([part.id for part in parts]))
    columns = [each.name for each in fields(Counts) if each.name != "about"]
    return replace(parts[0], **{name: np.concatenate([getattr(p, name) for p in parts])[order] for name in columns})


def by_images(rows: dict[str, Counts]) -> dict[tuple[int, ...], dict[str, Counts]]:
    """Rows in groups of the same images, the most images first: only within a group are figures to be compared."""
    groups: dict[tuple[int, ...], dict[str, Counts]] = {}
    for name, one in rows.items():
        groups.setdefault(tuple(one.id.tolist()), {})[name] = one
    return dict(sorted(groups.items(), key=lambda group: -len(group[0])))


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
    rng, values = np.random.default_rng(0), mine - theirs
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def acr_text(one: Counts) -> str:
    """Average certified radius as tables show it."""
    return floor_text(acr(one), 3)


def share_text(share: float, images: int) -> str:
    """A share of so many images in per cent, rounded down; by whole numbers, since 100 * .29 is below 29 in floats."""
    return f"{round(share * images) * 1000 // images / 10:.1f}"


def strongest(rows: dict[str, Counts]) -> str:
    """The row with the largest average certified radius."""
    return max(rows, key=lambda name: acr(rows[name]))


def accuracy_table(rows: dict[str, Counts], title: str) -> Table:
    """Certified accuracy, ACR, shares of what went wrong and the cost of each row."""
    lines = []
    for name, one in rows.items():
        values = certified_accuracy(one, RADII)
        wrong = float(np.mean(~one.correct & (one.radius > 0.0)))
        lines.append(
            (
                name,
                *(share_text(value, len(one)) for value in values),
                acr_text(one),
                share_text(float(np.mean(one.prediction < 0)), len(one)),
                share_text(wrong, len(one)),
                f"{int(one.samples.mean()):,}",
            )
        )
    columns = ("row", *(f"{radius:g}" for radius in RADII), "ACR", "abstained %", "certified wrong %", "forwards")
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
