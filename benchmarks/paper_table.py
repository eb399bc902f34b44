"""Counts of certification runs in one small file a row, and the tables that follow from them.

It draws nothing and trains nothing. A file holds a run's header, its training, and for each image label, sigma, both
counts and the radius that the run claimed; reading it recomputes the radius from the counts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from ddsmoothing.analysis import acr, envelope, held_radius
from ddsmoothing.bounds import floor_text, largest_lower_bound, normal_quantile_below
from ddsmoothing.cli.interrupts import INTERRUPTED
from ddsmoothing.errors import DdsmoothingError, RunError
from ddsmoothing.runs import ResultRow, Run
from ddsmoothing.tables import Table, ceil_text, markdown, percent
from ddsmoothing.tables.summary import accuracy_cells
from ddsmoothing.training import Trained

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
START, END = "<!-- python benchmarks/fashion_mnist.py --tables -->\n", "<!-- end -->\n"
COLUMNS = ("id", "label", "sigma", "n0_counts", "n_counts", "radius")
ENDS = (0.05, 0.5, 0.95)  # quantiles of sigma that are shown
NOT_RUN, MIXED, PURE = "not run", "multi-sigma", "gaussian"  # trained with a range of sigmas, and with one
STEP = 0.012  # half a step of the sigmas that a search may choose, relatively
SAFE, CLOSE = 1e-12, 1e-6  # a claimed radius may lie so far above and below what SciPy makes of its counts
KINDS = {"plain": "one sigma", "DS": "DS", "DS2": "DS²"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        kind: ``plain``, ``DS`` or ``DS2``.   sigma: of training and, if plain, of certification; None: a range's.
    """

    method: str
    kind: str
    sigma: float | None

    @property
    def name(self) -> str:
        """Of its run and its counts."""
        return "-".join([self.method, *([] if self.sigma is None else [f"{self.sigma:g}"]), self.kind.lower()])

    @property
    def label(self) -> str:
        """In the table."""
        return KINDS[self.kind] + ("" if self.sigma is None else f", {self.sigma:g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """What was counted on B images, and what follows from it.

    Attributes:
        about: the run's header and how its network was trained.   id, label, sigma, radius: ``(B,)``.
        n0_counts, n_counts: ``(B, K)``.
    """

    about: dict[str, Any]
    id: NDArray[np.int64]
    label: NDArray[np.int64]
    sigma: NDArray[np.float64]
    n0_counts: NDArray[np.int64]
    n_counts: NDArray[np.int64]
    radius: NDArray[np.float64]
    stops_at_radius = False

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(B,)`` True where a certificate names the right class."""
        return (self.radius > 0.0) & (self.n0_counts.argmax(1) == self.label)

    @cached_property
    def recomputed(self) -> NDArray[np.float64]:
        """``(B,)`` radius from the counts in floating point: ``sigma Phi^-1(CP_lower)`` of the pilot's class."""
        n, k = self.n_counts.sum(1), self.n_counts[np.arange(len(self)), self.n0_counts.argmax(1)]
        lower = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, self.about["run"]["alpha"]), 0.0)
        return np.where(lower > 0.5, self.sigma * ndtri(np.maximum(lower, 0.5)), 0.0)


def save_counts(run: Run, trained: Trained, path: Path) -> None:
    """Keep a finished run's evidence."""
    if run.partial:
        raise RunError(f"{run.path} is not finished, expected a whole run.")
    moved = trained.sigma[trained.sigma != trained.config.sigma_start].numpy()  # others were not trained on
    about = {
        "run": run.header.model_dump(mode="json"),
        "training": trained.config.model_dump(mode="json"),
        "last_epoch": trained.metrics[-1],
        "training_sigma": np.quantile(moved, ENDS).tolist() if trained.config.data_dependent else None,
    }
    columns = {name: np.array([_field(row, name) for row in run.rows]) for name in COLUMNS}
    smallest = {"id": np.uint16, "label": np.uint8, "n0_counts": np.uint16, "n_counts": np.uint16}
    packed = {name: values.astype(smallest.get(name, np.float64)) for name, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, about=np.array(json.dumps(about)), **packed)


def _field(row: ResultRow, name: str) -> Any:
    """A column of a row; the counts are those of a plurality vote."""
    drawn = {"n0_counts": row.pilot, "n_counts": row.fresh}
    if name not in drawn:
        return getattr(row, name)
    measured = drawn[name]
    return (0,) * len(row.pilot.votes) if measured is None else measured.votes


def load_counts(path: Path) -> Counts:
    """Read a row's evidence; RunError where a radius is not what its counts give."""
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name].astype(file[name].dtype.kind.replace("u", "i") + "8") for name in COLUMNS}
        counts = Counts(about=json.loads(str(file["about"])), **columns)
    above = counts.radius - counts.recomputed
    if len(wrong := counts.id[(above > SAFE) | (above < -CLOSE)]):
        raise RunError(f"{path}: the radius of input {wrong[0]} is not what its counts give; remake the file.")
    return counts


def load_all(rows: list[Row], folder: Path) -> dict[Row, Counts]:
    """The rows that are there."""
    paths = {row: folder / f"{row.name}.npz" for row in rows}
    return {row: load_counts(path) for row, path in paths.items() if path.exists()}


def tables(rows: list[Row], folder: Path) -> str:
    """All tables, in Markdown."""
    kinds = list(KINDS)
    rows = sorted(rows, key=lambda row: (row.method == MIXED, row.method, kinds.index(row.kind), row.sigma or 0.0))
    methods, found = list(dict.fromkeys(row.method for row in rows)), load_all(rows, folder)
    made = [_accuracy(method, [row for row in rows if row.method == method], found) for method in methods]
    return "\n".join([_made_on(found), markdown([*made, _shape(rows, found), _details(rows, found)])])


def _made_on(found: dict[Row, Counts]) -> str:
    """One sentence for all rows, which must be of one kind."""
    made = {
        (len(one), run["sampler_options"]["n0"], run["sampler_options"]["n"], run["alpha"], run["precision"])
        for one in found.values()
        for run in [one.about["run"]]
    }
    if len(made) != 1:
        raise RunError(f"expected counts of rows made alike, got {sorted(made) or 'none'}; run the cells first.")
    [(images, n0, n, alpha, precision)] = made
    cap = floor_text(normal_quantile_below(largest_lower_bound(n, alpha)), 2)
    return (
        f"{images} test images, n0 = {n0}, n = {n:,}, alpha = {alpha:g}, {precision} forward passes; no radius can "
        f"exceed {cap} sigma.\n"
    )


def _groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one method by kind."""
    return {kind: [row for row in rows if row.kind == kind] for kind in KINDS if any(r.kind == kind for r in rows)}


def _hits(found: list[Counts]) -> list[int]:
    """The envelope: the largest number of images at each radius that any of these has certified."""
    return np.round(envelope(found, RADII) * len(found[0])).astype(int).tolist()


def _accuracy(method: str, rows: list[Row], found: dict[Row, Counts]) -> Table:
    lines = []
    for group in _groups(rows).values():
        lines += [
            (row.label, *(accuracy_cells(found[row], RADII) if row in found else [NOT_RUN] * (len(RADII) + 1)))
            for row in group
        ]
        if len(there := [found[row] for row in group if row in found]) > 1:
            best = [percent(hits, len(there[0])) for hits in _hits(there)]
            lines.append((f"envelope of these {len(there)}", *best, "-"))
    return Table(
        title=f"{method}: certified accuracy (%) at L2 radius, and ACR; level pointwise",
        columns=("certification, sigma", *(f"{radius:g}" for radius in RADII), "ACR"),
        rows=tuple(lines),
    )


def _shape(rows: list[Row], found: dict[Row, Counts]) -> Table:
    """Data-dependent rows, and their envelope, against the envelope of their method's fixed rows."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method and row.kind != "plain" and row in found]
        for other in (method, PURE) if method == MIXED else (method,):
            fixed = [found[r] for r in rows if (r.method, r.kind) == (other, "plain") and r in found]
            groups = {row.label: [found[row]] for row in mine if fixed}
            if len(groups) > 1:
                groups[f"envelope of these {len(groups)}"] = [found[row] for row in mine]
            against = f"{other}, {len(fixed)} rows"
            lines += [(f"{method}, {label}", against, *_gains(group, fixed)) for label, group in groups.items()]
    return Table(
        title="Data-dependent rows: percentage points above the envelope of fixed rows",
        columns=("row", "fixed rows of", *(f"{radius:g}" for radius in RADII), "ACR over the best"),
        rows=tuple(lines),
    )


def _gains(mine: list[Counts], fixed: list[Counts]) -> list[str]:
    """Points gained at each radius, and the best ACR over the best fixed one; rounded down."""
    hits, total = np.subtract(_hits(mine), _hits(fixed)).tolist(), len(fixed[0])
    return [*(_points(gain, total) for gain in hits), floor_text(max(map(acr, mine)) - max(map(acr, fixed)), 3)]


def _points(hits: int, total: int) -> str:
    """A difference of shares in points, rounded down."""
    return f"{hits * 1000 // total / 10:+.1f}"  # exact in whole numbers; // rounds down


def _details(rows: list[Row], found: dict[Row, Counts]) -> Table:
    """How networks were trained, the sigmas of training and of certification, and what ACR consists of."""
    return Table(
        title="Training, sigma (5 %, median, 95 %), and what ACR consists of",
        columns=(
            *("row", "epochs", "accuracy under training noise %", "held-out %", "sigma in training"),
            *("sigma in certification", "at the lower end %", "at the upper end %"),
            *(f"ACR, radii cut at {RADII[-1]:g}", "largest class's share of ACR %"),
        ),
        rows=tuple((f"{row.method}, {row.label}", *_detail(found[row])) for row in rows if row in found),
    )


def _detail(one: Counts) -> list[str]:
    """Shares of images at the ends of sigma's range, and of a class in ACR, are rounded up."""
    training, last, policy = one.about["training"]["sigma"], one.about["last_epoch"], one.about["run"]["policy"]
    given = "-".join(f"{end:g}" for end in training) if isinstance(training, list) else f"{training:g}"
    chosen = [one.sigma[0]] if policy["sigma0"] is None else np.quantile(one.sigma, ENDS)
    ends = [policy[end] for end in ("sigma_min", "sigma_max")]
    near, held = partial(np.isclose, one.sigma, rtol=STEP), held_radius(one)
    share = np.bincount(one.label, held).max() / max(held.sum(), SAFE)
    return [
        str(last["epoch"] + 1),
        *(floor_text(100 * last[name], 1) for name in ("accuracy", "validation_accuracy")),
        _numbers(one.about["training_sigma"]) if one.about["training_sigma"] else given,
        _numbers(chosen),
        *("-" if end is None else ceil_text(100 * float(near(end).mean()), 1) for end in ends),
        floor_text(np.minimum(held, RADII[-1]).mean(), 3),
        ceil_text(100 * float(share), 1),
    ]


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def write_page(page: Path, text: str, start: str = START, end: str = END) -> None:
    """Put the tables between their marks in a page of the documentation."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(start)
    _, last, after = rest.partition(end)
    if not (mark and last):
        raise RunError(f"{page} lacks the lines {start.strip()!r} and {end.strip()!r}, between which the tables stand.")
    page.write_text(before + start + "\n" + text + "\n" + end + after, encoding="utf-8")


def work_off(steps: Iterable[tuple[str, Callable[[], object]]], *, listed: bool) -> None:
    """Name each step, do it, and say how long it took; where they are only to be listed, name them."""
    for name, work in steps:
        print(name, flush=True)
        if not listed:
            start = time.perf_counter()
            work()
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def ending(work: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """A script's main whose stop and whose errors become a line and an exit code."""

    @wraps(work)
    def main(argv: list[str] | None = None) -> int:
        try:
            return work(argv)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return INTERRUPTED
        except DdsmoothingError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return main
