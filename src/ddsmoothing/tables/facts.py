"""What a run says of itself, read in this one place: vote, units, class names, and the evidence of a row.

It makes no tables and compares no runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims import ABSTAIN, POINTWISE, STATELESS
from ddsmoothing.errors import printable
from ddsmoothing.runs import ResultRow, Results, Run

if TYPE_CHECKING:
    from ddsmoothing.data import Dataset

PLURALITY: Final = "plurality"
PIXELS: Final = "pixels in [0, 1]"


def vote_of(run: Results) -> str:
    """How noisy answers become the smoothed one; of others' results as whoever imported them said."""
    return run.header.vote


def votes_text(runs: Sequence[Results]) -> str:
    """``pairwise vote``, or ``plurality and pairwise votes`` where runs differ."""
    votes = list(dict.fromkeys(vote_of(run) for run in runs))
    return f"{' and '.join(votes)} vote{'s' if len(votes) > 1 else ''}"


def sampler_numbers(run: Run) -> dict[str, Any]:
    """The numbers of its sampler, in the glossary's words."""
    return {"sigmas" if key == "scales" else key: value for key, value in run.header.sampler_options.items()}


def units_of(run: Results) -> str:
    """What sigma and radii are measured in; others' results are taken to be of pixels, as the field's files are."""
    return printable(run.header.units).replace("those of", "units of") if isinstance(run, Run) else PIXELS


def bound_words(runs: Sequence[Results]) -> str:
    """What p_lower of these runs bounds from below."""
    words = {
        PLURALITY: "the top class's probability",
        "pairwise": "the probability that the class beats its strongest rival",
    }
    found = {words[vote_of(run)] for run in runs}
    return found.pop() if len(found) == 1 else "the probability of the event that binds"


def is_pointwise(run: Results) -> bool:
    """Whether its certificates are those of its own samples, not answers of a memory or a rule over several sigmas."""
    return run.level == POINTWISE.name


def levels_of(run: Results) -> frozenset[str]:
    """The levels that its certificates hold at: with one sigma for all inputs pointwise and stateless coincide."""
    one_classifier = run.header.sigma is not None and is_pointwise(run)
    return frozenset({POINTWISE.name, STATELESS.name} if one_classifier else {run.level})


def rule_text(run: Results) -> str | None:
    """What a stateless rule is called, ``pair table of sigma 0.5, 1``; None for runs without one."""
    rule = run.header.stateless if isinstance(run, Run) else None
    if rule is None:
        return None
    sigmas = ", ".join(f"{sigma:.4g}" for sigma in rule.sigmas)
    text = f"sigma {sigmas}" if len(rule.sigmas) == 1 else f"{rule.words} of sigma {sigmas}"
    return text if rule.given_offsets is None else f"{text}, offsets"


def abstained(run: Results) -> NDArray[np.bool_]:
    """``(B,)`` True where there is no certificate."""
    return np.asarray(run.prediction == ABSTAIN)


def certified(run: Results) -> NDArray[np.bool_]:
    """``(B,)`` True where there is a certificate of a radius above 0, of whatever class."""
    return np.asarray(~abstained(run) & (run.radius > 0.0))


def class_names(run: Results, data: Dataset | None = None) -> tuple[str, ...] | None:
    """Names of the classes, where the run, or its data set, knows one for each."""
    if not isinstance(run, Run):
        return None
    said = run.header.config.get("classes") or getattr(data, "classes", None)
    if not isinstance(said, (list, tuple)) or len(said) != run.header.num_classes:
        return None
    return tuple(printable(str(name)) for name in said)


def class_text(run: Results, label: int, data: Dataset | None = None) -> str:
    """A class as tables and captions show it: ``6``, or ``6 shirt`` where classes have names."""
    names = class_names(run, data)
    return str(label) if names is None or not 0 <= label < len(names) else f"{label} {names[label]}"


def evidence_of(run: Run, row: ResultRow) -> dict[str, Any]:
    """What a row's claim rests on, as flat columns."""
    header = run.header
    return {
        "norm": header.norm,
        "level": header.level,
        "vote": vote_of(run),
        "alpha": header.alpha,
        "bound": header.bound,
        "sampler": header.sampler,
        "pilot_votes": list(row.pilot.votes),
        "votes": [] if row.fresh is None else list(row.fresh.votes),
        "wins": [] if row.fresh is None else list(row.fresh.wins or ()),
        "samples": row.samples,
        "seconds": row.seconds,
    }
