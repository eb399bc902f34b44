"""What a report says first: what was certified, how good it is, and why it can be trusted. It knows no templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.analysis import acr, acr_interval, certified_accuracy, share_interval
from ddsmoothing.bounds import floor_text
from ddsmoothing.report.claims import SetRisk, radii_for, set_risk
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables import alike, heading, interval_text, labelled, percent, percent_up, significant
from ddsmoothing.tables.facts import abstained, certified, units_of, vote_of

IMPORTED: Final = "Radii rounded by others, without the counts behind them: nothing here can be recomputed."
VERIFY: Final = "The command ddsmoothing verify recomputes every radius from what was counted."
NONE: Final = ("-", "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificates:
    """Certificates of whatever class, of a run without labels.

    Attributes:
        correct: ``(B,)`` True where there is one.   radius: ``(B,)``.
    """

    correct: NDArray[np.bool_]
    radius: NDArray[np.float64]


def title_of(runs: Sequence[Results]) -> str:
    """``MODEL on DATA, 200 of 1,000 inputs, 2026-05-01``: the day the runs were begun, or the first and the last."""
    days = sorted({run.header.created[:10] for run in runs})
    return f"{heading(runs)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def first_run(runs: Sequence[Results]) -> int:
    """Place of the run whose figures stand first: the first with a sigma of its own for each input, else the first."""
    return next((i for i, run in enumerate(runs) if run.header.sigma is None), 0)


def tiles_of(runs: Sequence[Results], radius: float | None = None) -> dict[str, Any]:
    """Four figures of each run, with intervals, as text: accuracies, ACR, abstentions; and why to trust them.

    Args:
        runs: With labels or without.
        radius: The one that is shown first; None: the largest at which half of what is certified at 0 still is.
    """
    first = first_run(runs)
    radii = sorted({0.0, *(r for same in alike(runs) for r in radii_for(same)), *([] if radius is None else [radius])})
    start = radii.index(_half(runs[first], radii) if radius is None else radius)
    return {
        "radii": [f"{one:g}" for one in radii],
        "run": first,
        "radius": start,
        "runs": [_tiles(run, radii) for run in runs],
    }


def _half(run: Results, radii: Sequence[float]) -> float:
    shares = certified_accuracy(_known(run), radii)
    return max(
        (r for r, share in zip(radii[1:], shares[1:], strict=True) if share >= shares[0] / 2 > 0), default=radii[1]
    )


def _known(run: Results) -> Results | Certificates:
    """The run, or its certificates of whatever class where it knows no labels."""
    return run if labelled([run]) else Certificates(correct=certified(run), radius=run.radius)


def _tiles(run: Results, radii: Sequence[float]) -> dict[str, Any]:
    known, total = _known(run), len(run)
    hits = [round(share * total) for share in certified_accuracy(known, radii).tolist()]
    mean = NONE
    if not run.stops_at_radius:
        mean = (floor_text(acr(known), 3), interval_text(*acr_interval(known), 3))
    gone = int(abstained(run).sum())
    return {
        "what": "Certified accuracy" if labelled([run]) else "Certified, of whatever class,",
        "mean": "Average certified radius (ACR)" if labelled([run]) else "Mean radius, of whatever class",
        "accuracy": [(f"{percent(k, total)} %", _share(k, total)) for k in hits],
        "acr": mean,
        "abstained": (f"{percent_up(gone, total)} %", _share(gone, total)),
        "trust": trust(run),
    }


def _share(hits: int, total: int) -> str:
    low, high = share_interval(hits, total)
    return f"{interval_text(100 * low, 100 * high, 0)} %"


def trust(run: Results) -> str:
    """What stands behind a run's figures, in a line or two."""
    kind = f"Level {run.level}, {run.header.norm.upper()} norm, {vote_of(run)} vote, radii in {units_of(run)}."
    if not isinstance(run, Run):
        return f"{kind} {IMPORTED}"
    return f"{kind} {likely_false(set_risk(run))} {VERIFY}"


def likely_false(risk: SetRisk | None) -> str:
    """How likely certificates are false: one, and all together."""
    if risk is None:
        return "All answers come from earlier regions, with the risk that the run which stored them states."
    one = f"A certificate is false with probability at most {significant(risk.alpha, up=True)}"
    many = f"at most {risk.false:,} of {risk.certifications:,} are false, with probability at least {1 - risk.rho:g}"
    return f"{one}; {many}."
