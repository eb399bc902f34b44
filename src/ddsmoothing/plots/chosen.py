"""Which runs a figure draws, and what it calls them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddsmoothing.claims import level_named
from ddsmoothing.runs import Results
from ddsmoothing.tables import alike, labels_of, same_run


def one_axis(runs: Sequence[Results]) -> bool:
    """Whether there are runs and their radii may share an axis."""
    return len(list(alike(runs))) == 1


def own_sigma(runs: Sequence[Results]) -> list[Results]:
    """The runs that chose a sigma of its own for each input."""
    return [run for run in runs if run.header.sigma is None and bool(np.isfinite(run.sigma).all()) and not of_rule(run)]


def of_rule(run: Results) -> bool:
    """Whether one rule over several sigmas served every input."""
    return level_named(run.level).asks_anew


def once(runs: Sequence[Results]) -> list[tuple[Results, str]]:
    """Runs with their labels, but one where a run of another level says the same of every input.

    Of the two it is the one with the smaller radii, so that nothing drawn is too large for either.
    """
    found: list[tuple[Results, str]] = []
    for run, label in zip(runs, labels_of(runs), strict=True):
        at = next((i for i, (other, _) in enumerate(found) if same_run(other, run)), None)
        if at is None:
            found.append((run, label))
        else:
            other, text = found[at]
            least = min(other, run, key=lambda one: float(one.radius.sum()))
            found[at] = (least, _also(other.level, run.level, text))
    return found


def _also(level: str, other: str, label: str) -> str:
    """``data-dependent sigma (pointwise and memory)``."""
    named = f"({level})"
    return label.replace(named, f"({level} and {other})") if named in label else f"{label}, level {other} the same"
