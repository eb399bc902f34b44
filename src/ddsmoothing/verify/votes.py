"""Cascades and experts behind a gate: what their pilots commit to, and the event of each scale; see ``verify``.

A cascade answers by the first expert j with ``phi_jc > tau_j`` for some class c. A gate picks the expert whose group of
classes is most frequent at the gate's scale, the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from scipy.special import ndtri

Row = dict[str, Any]
FIELDS: Final = {
    "cascade": {"kind", "sigmas", "taus", "reach"},
    "routed": {"kind", "sigmas", "groups", "branches"},
}


class Made(NamedTuple):
    """What pilots commit to: the class, the slots at which it is certified, and the expert that is picked."""

    top: int
    slots: list[int]
    chosen: int = 0


def wrong_votes(header: Row, rule: Row) -> Iterator[str]:
    """What is wrong with such a rule."""
    count = len(rule["sigmas"])
    if "offsets" in header["rule"]:
        yield "class offsets belong to a pairwise vote"
    if rule["kind"] == "cascade":
        taus = rule["taus"]
        if len(taus) != count or any(type(tau) is not float or not 0 <= tau < math.inf for tau in taus) or taus[-1]:
            yield f"the thresholds are {taus!r}, expected one from 0 on for each sigma, the last 0"
        if type(rule["reach"]) is not bool:
            yield f"reach is {rule['reach']!r}"
        return
    groups = rule["groups"]
    if count < 2 or len(groups) != header["num_classes"]:
        yield "a gate needs experts, and one of them for each class"
    if any(type(g) is not int or not 0 <= g < count - 1 for g in groups):
        yield f"the gate's groups are {groups!r}"
    if rule["branches"] not in ("reach", "dual"):
        yield f"branches are {rule['branches']!r}"


def phi_at(share: float, sigma: float, header: Row) -> float:
    """Of an event of this probability, in floats."""
    if header["norm"] == "l2":
        return sigma * float(ndtri(share))
    return 2.0 * math.sqrt(3.0) * sigma * (share - 0.5)


def shown(part: Row, count: int, header: Row) -> float:
    """The phi that a pilot shows of an event that happened so often."""
    return phi_at((count + 0.5) / (part["n"] + 1.0), part["sigma"], header)


def commit_votes(pilots: Sequence[Row], header: Row, rule: Row) -> Made:
    """What the pilots commit to."""
    return (_cascade if rule["kind"] == "cascade" else _routed)(pilots, header, rule)


def _cascade(pilots: Sequence[Row], header: Row, rule: Row) -> Made:
    taus = rule["taus"]
    sure = [j for j, part in enumerate(pilots) if shown(part, max(part["votes"]), header) > taus[j]]
    first = sure[0] if sure else len(taus) - 1
    votes = pilots[first]["votes"]
    top, last = votes.index(max(votes)), first
    if rule["reach"]:
        mine, margins = [shown(part, part["votes"][top], header) for part in pilots], []
        for j, tau in enumerate(taus):
            before = [mine[i] + taus[i] for i in range(j)]
            margins.append(min([*before, mine[j] - tau]))
        last = margins.index(max(margins))
    return Made(top, list(range(last + 1)), last)


def _routed(pilots: Sequence[Row], header: Row, rule: Row) -> Made:
    *experts, gate = pilots
    picks = [_group(gate, rule, i) for i in range(len(experts))]
    chosen = picks.index(max(picks))
    votes = experts[chosen]["votes"]
    top = votes.index(max(votes))
    far, slots = shown(gate, picks[chosen], header), []
    for i, part in enumerate(experts):
        away = rule["branches"] == "dual" or far >= shown(part, part["votes"][top], header)
        if i == chosen or not away:
            slots.append(i)
    return Made(top, slots if len(slots) == len(experts) else [*slots, len(experts)], chosen)


def _group(part: Row, rule: Row, expert: int) -> int:
    """Votes of the classes by which the gate picks an expert."""
    votes: list[int] = [k for k, group in zip(part["votes"], rule["groups"], strict=True) if group == expert]
    return sum(votes)


def event(part: Row, made: Made, rule: Row) -> int:
    """How often the event of a measurement's scale happened."""
    slot: int = part.get("slot", 0)
    votes: list[int] = part["votes"]
    if rule["kind"] == "routed" and slot == len(rule["sigmas"]) - 1:
        return _group(part, rule, made.chosen)
    if rule["kind"] == "cascade" and slot < made.chosen and not rule["reach"]:
        return sum(votes) - max(votes)
    return votes[made.top]


def threshold(made: Made, slot: int, rule: Row) -> float:
    """What phi of a scale's event has to exceed."""
    if rule["kind"] == "routed":
        return 0.0
    tau: float = rule["taus"][slot]
    return tau if slot == made.chosen else -tau
