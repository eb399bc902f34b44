"""The tables that follow from the counts of ``fashion_mnist.py``. It draws nothing and trains nothing.

Each row is there twice, from the same samples: under the pairwise vote that its run was made with, and under the
plurality vote with the one-class bound, which is that of the papers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

import kept_counts
from ddsmoothing.analysis import acr, envelope, held_radius
from ddsmoothing.bounds import floor_text, largest_lower_bound, normal_quantile_below
from ddsmoothing.cli.interrupts import INTERRUPTED
from ddsmoothing.errors import DdsmoothingError, RunError
from ddsmoothing.plan import SearchPlan
from ddsmoothing.runs import Run
from ddsmoothing.tables import Table, ceil_text, markdown, percent
from ddsmoothing.tables.summary import accuracy_cells
from ddsmoothing.training import Trained
from kept_counts import Counts

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
START, END = "<!-- python benchmarks/fashion_mnist.py --tables -->\n", "<!-- end -->\n"
CONSISTS = (f"ACR, radii cut at {RADII[-1]:g}", "largest class's share of ACR %")
VOTES: dict[str, Callable[[Counts], Counts]] = {"pairwise": lambda one: one, "one-class": Counts.one_class}
ENDS = (0.05, 0.5, 0.95)  # quantiles of sigma that are shown
NOT_RUN, MIXED, PURE = "not run", "multi-sigma", "gaussian"  # trained with a range of sigmas, and with one
STEP = 0.012  # half a step of the sigmas that a search may choose, relatively
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


def save_counts(run: Run, trained: Trained, path: Path) -> None:
    """Keep a finished run's evidence, and how its network was trained."""
    moved = trained.sigma[trained.sigma != trained.config.sigma_start].numpy()  # others were not trained on
    kept_counts.save(
        run,
        path,
        searched=SearchPlan().forwards if run.header.sigma is None else 0,
        training=trained.config.model_dump(mode="json"),
        last_epoch=trained.metrics[-1],
        training_sigma=np.quantile(moved, ENDS).tolist() if trained.config.data_dependent else None,
    )


def load_all(rows: list[Row], folder: Path) -> dict[Row, Counts]:
    """The rows that are there."""
    paths = {row: folder / f"{row.name}.npz" for row in rows}
    return {row: kept_counts.load(path) for row, path in paths.items() if path.exists()}


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
        for run in [one.about]
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
        for vote, judged in VOTES.items():
            there = {row: judged(found[row]) for row in group if row in found}
            for row in group:
                cells = accuracy_cells(there[row], RADII) if row in there else [NOT_RUN] * (len(RADII) + 1)
                lines.append((row.label, vote, *cells))
            if len(there) > 1:
                best = [percent(hits, len(found[group[0]])) for hits in _hits(list(there.values()))]
                lines.append((f"envelope of these {len(there)}", vote, *best, "-"))
    return Table(
        title=f"{method}: certified accuracy (%) at L2 radius, and ACR; level pointwise",
        columns=("certification, sigma", "vote", *(f"{radius:g}" for radius in RADII), "ACR"),
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
            for label, group in groups.items():
                for vote, judged in VOTES.items():
                    gains = _gains(list(map(judged, group)), list(map(judged, fixed)))
                    lines.append((f"{method}, {label}", vote, against, *gains))
    return Table(
        title="Data-dependent rows: percentage points above the envelope of fixed rows of the same vote",
        columns=("row", "vote", "fixed rows of", *(f"{radius:g}" for radius in RADII), "ACR over the best"),
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
            *(
                f"{vote}: {what}"
                for vote in VOTES
                for what in (f"ACR, radii cut at {RADII[-1]:g}", "largest class's share of ACR %")
            ),
        ),
        rows=tuple((f"{row.method}, {row.label}", *_detail(found[row])) for row in rows if row in found),
    )


def _detail(one: Counts) -> list[str]:
    """Shares of images at the ends of sigma's range, and of a class in ACR, are rounded up."""
    training, last, policy = one.about["training"]["sigma"], one.about["last_epoch"], one.about["policy"]
    given = "-".join(f"{end:g}" for end in training) if isinstance(training, list) else f"{training:g}"
    chosen = [one.sigma[0]] if policy["sigma0"] is None else np.quantile(one.sigma, ENDS)
    ends = [policy[end] for end in ("sigma_min", "sigma_max")]
    near = partial(np.isclose, one.sigma, rtol=STEP)
    return [
        str(last["epoch"] + 1),
        *(floor_text(100 * last[name], 1) for name in ("accuracy", "validation_accuracy")),
        _numbers(one.about["training_sigma"]) if one.about["training_sigma"] else given,
        _numbers(chosen),
        *("-" if end is None else ceil_text(100 * float(near(end).mean()), 1) for end in ends),
        *(cell for judged in VOTES.values() for cell in _consists(judged(one))),
    ]


def _consists(one: Counts) -> tuple[str, str]:
    """ACR of radii that are cut, and the largest share that a class has in ACR."""
    held = held_radius(one)
    share = np.bincount(one.label, held).max() / max(held.sum(), 1e-12)
    return floor_text(np.minimum(held, RADII[-1]).mean(), 3), ceil_text(100 * float(share), 1)


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
