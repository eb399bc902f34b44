"""What runs are called, what they were made on, and which of them may stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.analysis import held_radius
from ddsmoothing.bounds import floor_text
from ddsmoothing.claims import POINTWISE
from ddsmoothing.errors import RunError, printable
from ddsmoothing.runs import Imported, Results, Run


def labels_of(runs: Sequence[Results]) -> list[str]:
    """What legends and tables call runs: sigma, level, what is wrong with them, and what tells them apart.

    That is the data set where runs are of several, and the folder where two would be alike.
    """
    labels = [_label(run) + mark for run, mark in zip(runs, _data_marks(runs), strict=True)]
    return [
        f"{label}, {printable(run.name)}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _data_marks(runs: Sequence[Results]) -> list[str]:
    """The data set of each run, where they are not all of one; that of an import is not known."""
    found = [run.header.data if isinstance(run, Run) else None for run in runs]
    known = {(data.sha256, data.length): data for data in found if data is not None}
    if len(known) < 2:
        return [""] * len(runs)
    names = [data.name for data in known.values()]
    return [
        "" if one is None else f", {printable(one.name)}" + (f" {one.sha256[:8]}" if names.count(one.name) > 1 else "")
        for one in found
    ]


def _label(run: Results) -> str:
    header, mark = run.header, " (partial)" if run.partial else ""
    mark += " (rounded radii)" if run.rounded else ""
    if header.sigma is None:
        kind = "sigma unknown" if header.sigma_policy == "unknown" else "data-dependent sigma"
        return f"{kind} ({run.level}){mark}"
    text = f"fixed sigma {header.sigma:.4g}"
    if header.norm == "l1":
        text += f" (lambda {3**0.5 * header.sigma:.4g})"
    if run.level != POINTWISE.name:  # with one sigma the other levels say what pointwise says
        text += f" ({run.level})"
    return text + mark


def provenance(run: Results) -> str:
    """Which inputs, how many samples, which alpha: ``200 of 1000 inputs (one in 5), n0=100, n=1000, alpha 0.001``."""
    if isinstance(run, Imported):
        return f"{len(run)} inputs of {printable(run.header.source)}, radii rounded by others, no counts"
    header = run.header
    rule = [f"one in {header.subset.skip}"] if header.subset.skip > 1 else []
    rule += [f"at most {header.subset.max}"] if header.subset.max is not None else []
    rule += ["shard {} of {}".format(*header.subset.shard)] if header.subset.shard is not None else []
    text = f"{len(run)} of {header.data.length} inputs"
    text += f" ({', '.join(rule)})" if rule else ""
    text += f", partial: {header.subset.size} were asked for" if run.partial else ""
    options = ", ".join(f"{key}={value}" for key, value in header.sampler_options.items())
    return f"{text}, {printable(header.sampler)} sampler, {printable(options)}, alpha {header.alpha:g}"


def same_inputs(one: Results, other: Results, *, some: bool = False) -> bool:
    """Whether two runs are of the same inputs: data set, ids and labels; with ``some``, of those both have.

    The data set behind an imported file is not known; there ids and labels decide.
    """
    if isinstance(one, Run) and isinstance(other, Run) and one.header.data != other.header.data:
        return False
    if not some and not np.array_equal(one.ids, other.ids):
        return False
    _, i, j = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
    return len(i) > 0 and bool((one.label[i] == other.label[j]).all())


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Two runs, input by input, on the inputs that both have.

    Attributes:
        ids: ``(B,)``.   ours, theirs: ``(B,)`` radius of the right class, else 0, of the run and of its baseline.
    """

    ids: NDArray[np.uint64]
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Inputs won (a larger radius than the baseline's), lost and equal."""
        won, lost = int((self.ours > self.theirs).sum()), int((self.ours < self.theirs).sum())
        return won, lost, len(self.ids) - won - lost


def paired(run: Results, baseline: Results) -> Paired:
    """Match two runs by id; RunError where their norms, levels, data or labels differ."""
    for what, one, other in (("norm", run.header.norm, baseline.header.norm), ("level", run.level, baseline.level)):
        if one != other:
            raise RunError(f"{run.path} is of {what} {one} and {baseline.path} of {what} {other}: not comparable.")
    if run.stops_at_radius or baseline.stops_at_radius:
        raise RunError(f"{run.path} or {baseline.path} stopped sampling at a wanted radius: its radii do not compare.")
    if not same_inputs(run, baseline, some=True):
        raise RunError(f"{run.path} and {baseline.path} are not of the same data set, or share no input.")
    ids, i, j = np.intersect1d(run.ids, baseline.ids, assume_unique=True, return_indices=True)
    return Paired(ids=ids, ours=held_radius(run)[i], theirs=held_radius(baseline)[j])


def labelled(runs: Sequence[Results]) -> bool:
    """Whether every input of every run has a label."""
    return all(row.label is not None for run in runs for row in run.rows)


def fixed_group(runs: Sequence[Results]) -> list[Results]:
    """The fixed-sigma runs whose envelope may be drawn: of one norm, level pointwise, on the same inputs; else none."""
    fixed = [run for run in runs if run.header.sigma is not None and run.level == POINTWISE.name]
    alike = all(run.header.norm == fixed[0].header.norm and same_inputs(fixed[0], run) for run in fixed[1:])
    return fixed if len(fixed) > 1 and alike else []


def subset_text(runs: Sequence[Results]) -> str:
    """For titles: ``200 of 1000 inputs`` where all runs took the same part, else each one's number."""
    sizes = sorted({str(len(run)) if run.rounded else f"{len(run)} of {_length(run)}" for run in runs})
    return f"{' / '.join(sizes)} inputs"


def _length(run: Results) -> int:
    assert isinstance(run, Run)
    return run.header.data.length


def percent(hits: int, total: int) -> str:
    """A share in per cent with one decimal, rounded down, in whole numbers so that 29 of 100 stays 29.0."""
    permille = hits * 1000 // total
    return f"{permille // 10}.{permille % 10}"


def ceil_text(value: float, digits: int) -> str:
    """A number in decimal, rounded UP: for upper ends of intervals and for what should look no better than it is."""
    text = floor_text(-float(value), digits)
    return text[1:] if text.startswith("-") else f"-{text}"
