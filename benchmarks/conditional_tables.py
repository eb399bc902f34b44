"""The rows of ``conditional.py`` and the tables that follow from their counts. It draws nothing and trains nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import kept_counts
import public_rows
from ddsmoothing.analysis import certified_accuracy, envelope, held_radius
from ddsmoothing.tables import Table, ceil_text, markdown
from kept_counts import Counts
from public_rows import RADII

START = "<!-- python benchmarks/conditional.py --tables -->\n"
HELD_OUT, SECONDS = "held-out", "seconds.json"
COLUMNS = ("id", "label", "prediction", "sigma", "radius", "top", "anchor", "votes", "wins", "samples")
NAMES = {
    "shipped": "the shipped CNN",
    "unconditional": "CNN, not told",
    "conditional": "CNN, told sigma",
    "denoised": "denoiser + clean CNN",
    "tuned": "denoiser + fine-tuned CNN",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which images, and how many samples.

    Attributes:
        skip: every so many-th image.
    """

    name: str
    title: str
    skip: int
    n: int


PARTS = {
    part.name: part
    for part in (
        Part(name=HELD_OUT, title="training images that were held out", skip=4, n=1000),
        Part(name="test", title="test images", skip=20, n=6000),
        Part(name="few", title="test images, equal n", skip=100, n=300),
    )
}


@dataclass(frozen=True)
class Row:
    """A certification run.

    Attributes:
        sigma: None is data-dependent.
    """

    part: str
    network: str
    sigma: float | None

    @property
    def at(self) -> str:
        """Its sigma in words."""
        return "data-dependent" if self.sigma is None else f"{self.sigma:g}"

    @property
    def name(self) -> str:
        """Of its run and its counts."""
        return f"{self.part}-{self.network}-{'dds' if self.sigma is None else f'at-{self.sigma:g}'}"

    @property
    def label(self) -> str:
        """In the tables."""
        return f"{NAMES[self.network]}, {self.at}"


def load_all(rows: list[Row], folder: Path) -> dict[Row, Counts]:
    """The rows that are there."""
    paths = {row: folder / f"{row.name}.npz" for row in rows}
    found = {row: kept_counts.load(path) for row, path in paths.items() if path.exists()}
    return {row: found[row] for row in sorted(found, key=_place)}


def _place(row: Row) -> tuple[int, int, float]:
    """In the tables: by part, network and sigma, data-dependent last."""
    return [*PARTS].index(row.part), [*NAMES].index(row.network), row.sigma or float("inf")


def text(rows: list[Row], folder: Path) -> str:
    """All tables, in Markdown."""
    found = load_all(rows, folder)
    made = []
    for part in PARTS.values():
        there = {row: one for row, one in found.items() if row.part == part.name}
        if there:
            made += [_accuracy(there, part), _votes(there, part)]
    if pairs := _differences(found):
        made.append(pairs)
    path = folder / SECONDS
    if path.exists():
        seconds = json.loads(path.read_text())
        made += [_cost(seconds), *_equal_time(found, seconds)]
    missing = [row.name for row in rows if row not in found]
    said = f"Not made yet, {len(missing)} of {len(rows)} rows: {', '.join(missing)}.\n\n" if missing else ""
    return said + markdown(made)


def _title(there: dict[Row, Counts], part: Part) -> str:
    one = next(iter(there.values()))
    return f"{len(one)} {part.title}, n = {int(one.votes.sum(1).max()):,}"


def _accuracy(there: dict[Row, Counts], part: Part) -> Table:
    """Certified accuracy by pairwise votes, and the envelope of each network's fixed sigmas."""
    named = {row.label: one for row, one in there.items()}
    table = public_rows.accuracy_table(
        named, f"Certified accuracy (%) at L2 radius, pairwise vote: {_title(there, part)}"
    )
    lines, by_row = [], dict(zip(there, table.rows, strict=True))
    for network in dict.fromkeys(row.network for row in there):
        lines += [by_row[row] for row in there if row.network == network]
        fixed = [one for row, one in there.items() if row.network == network and row.sigma is not None]
        if len(fixed) > 1:
            best = [public_rows.percent_of(float(value), len(fixed[0])) for value in envelope(fixed, RADII)]
            lines.append((f"{NAMES[network]}, envelope of {len(fixed)} fixed", *best, "-", "-", "-", "-"))
    return replace(table, rows=tuple(lines))


def _votes(there: dict[Row, Counts], part: Part) -> Table:
    """Average certified radius of the same counts under both votes."""
    lines = []
    for row, one in there.items():
        plain = one.one_class()
        shares = [public_rows.percent_of(float(np.mean(each.prediction < 0)), len(each)) for each in (one, plain)]
        lines.append((row.label, public_rows.acr_text(one), public_rows.acr_text(plain), *shares))
    return Table(
        title=f"ACR of the same counts under both votes: {_title(there, part)}",
        columns=("row", "pairwise", "plurality", "abstained %, pairwise", "plurality"),
        rows=tuple(lines),
    )


def _differences(found: dict[Row, Counts]) -> Table | None:
    """Gains of ACR over the row beside it on the same images, with intervals."""
    lines = []
    for part, mine, other, beside in (
        (HELD_OUT, "conditional", "shipped", HELD_OUT),
        ("test", "conditional", "shipped", "test"),
        ("test", "conditional", "unconditional", "test"),
        ("few", "conditional", "shipped", "few"),
        ("few", "conditional", "unconditional", "few"),
        ("few", "denoised", "conditional", "few"),
        ("few", "tuned", "conditional", "few"),
    ):
        for row in (row for row in found if (row.part, row.network) == (part, mine)):
            theirs = found.get(Row(beside, other, row.sigma))
            if theirs is not None:
                both = [
                    public_rows.difference(held_radius(a), held_radius(b))
                    for a, b in ((found[row], theirs), (found[row].one_class(), theirs.one_class()))
                ]
                lines.append((f"{row.part}: {row.label}", f"{beside}: {NAMES[other]}", *map(_interval, both)))
    if not lines:
        return None
    return Table(
        title="ACR gained over another network at the same sigma, on the same images, with 95 % intervals",
        columns=("row", "over", "pairwise", "plurality"),
        rows=tuple(lines),
    )


def _interval(found: tuple[float, float, float]) -> str:
    """A difference, rounded down, over its interval, rounded outwards."""
    value, low, high = (np.floor(found[0] * 1000), np.floor(found[1] * 1000), np.ceil(found[2] * 1000))
    return f"{value / 1000:+.3f}\n{low / 1000:+.3f} to {high / 1000:+.3f}"


def _cost(seconds: dict[str, float]) -> Table:
    """Processor time of a sample, rounded up, and in samples of the shipped CNN."""
    unit = seconds.get("shipped", min(seconds.values()))
    lines = [
        (NAMES[name], ceil_text(1e6 * value, 0), ceil_text(value / unit, 1))
        for name, value in seconds.items()
        if name in NAMES
    ]
    return Table(
        title="Cost of a sample, noise and all, one thread of a CPU, bf16",
        columns=("network", "microseconds", "times the shipped CNN"),
        rows=tuple(lines),
    )


def only(one: Counts, ids: NDArray[np.int64]) -> Counts:
    """The images with these ids."""
    at = np.isin(one.id, ids)
    return replace(one, **{name: getattr(one, name)[at] for name in COLUMNS})


def thinned(one: Counts, n: int) -> Counts:
    """What n of each image's samples would have given under a plurality vote: drawn without replacement, fixed seed.

    Noisy copies are exchangeable, so its law is that of a run with n samples.
    """
    rng = np.random.default_rng(0)
    votes = np.array([rng.multivariate_hypergeometric(row, min(n, row.sum())) for row in one.votes])
    return replace(one, votes=votes, wins=np.zeros_like(votes)).one_class()


def _equal_time(found: dict[Row, Counts], seconds: dict[str, float]) -> list[Table]:
    """What the same time buys, where all of it was measured."""
    tested = {row: one for row, one in found.items() if (row.part, row.network) == ("test", "conditional")}
    denoisers = seconds.keys() & {"denoised", "tuned"}
    few = {row: one for row, one in found.items() if row.part == "few" and row.network in denoisers}
    made = []
    if tested and few and "conditional" in seconds:
        ids = next(iter(few.values())).id
        rows = few | {row: only(one, ids) for row, one in tested.items()}
        n, many = PARTS["few"].n, PARTS["test"].n
        made.append(
            Table(
                title=f"{len(ids)} test images: a denoiser at n = {n:,} beside the CNN at n = {many:,}",
                columns=("row", *(f"{radius:g}" for radius in RADII), "ACR", "plurality", "seconds an image"),
                rows=tuple(_timed(row, one, seconds[row.network]) for row, one in rows.items()),
            )
        )
    shipped = {row.sigma: one for row, one in found.items() if (row.part, row.network) == ("test", "shipped")}
    pairs = {row.sigma: (one, shipped[row.sigma]) for row, one in tested.items() if row.sigma in shipped}
    if pairs and {"conditional", "shipped"} <= seconds.keys():
        made.append(_two_cnns(pairs, seconds["shipped"] / seconds["conditional"]))
    return made


def _two_cnns(pairs: dict[float | None, tuple[Counts, Counts]], ratio: float) -> Table:
    """The larger CNN with as many samples as the smaller one's time buys."""
    n = int(PARTS["test"].n * ratio)
    lines = []
    for sigma, (one, other) in pairs.items():
        mine, theirs = thinned(one, n), other.one_class()
        gain = _interval(public_rows.difference(held_radius(mine), held_radius(theirs)))
        at = "data-dependent" if sigma is None else f"{sigma:g}"
        lines.append((at, public_rows.acr_text(mine), public_rows.acr_text(theirs), gain))
    return Table(
        title=f"Equal time, plurality vote: told sigma with n = {n:,}, the shipped CNN with n = {PARTS['test'].n:,}",
        columns=("sigma", "told sigma, ACR", "shipped CNN, ACR", "gain"),
        rows=tuple(lines),
    )


def _timed(row: Row, one: Counts, seconds: float) -> tuple[str, ...]:
    """Certified accuracy, ACR under both votes, and processor time, rounded up."""
    accuracy = [public_rows.percent_of(float(value), len(one)) for value in certified_accuracy(one, RADII)]
    averages = [public_rows.acr_text(each) for each in (one, one.one_class())]
    return (row.label, *accuracy, *averages, ceil_text(float(one.samples.mean()) * seconds, 2))
