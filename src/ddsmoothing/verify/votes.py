"""Cascades and experts behind a gate: what their pilots commit to, and the event of each scale; see ``verify``.

A cascade answers by the first expert j with ``phi_jc > tau_j`` for some class c. A gate picks the expert whose group of
classes is most frequent at the gate's scale, the last one; each expert has a pairwise or a plurality vote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ddsmoothing.verify.duels import binding, duelled, margin, shown

Row = dict[str, Any]
FIELDS: Final = {
    "cascade": {"kind", "sigmas", "taus", "reach"},
    "gated": {"kind", "experts", "sigmas", "groups", "branches"},
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
        yield "class offsets of a whole rule belong to a pair table"
    if rule["kind"] == "cascade":
        taus = rule["taus"]
        if len(taus) != count or any(type(tau) is not float or not 0 <= tau < math.inf for tau in taus) or taus[-1]:
            yield f"the thresholds are {taus!r}, expected one from 0 on for each sigma, the last 0"
        if type(rule["reach"]) is not bool:
            yield f"reach is {rule['reach']!r}"
        return
    yield from _wrong_experts(header, rule)
    groups, known = rule["groups"], range(count - 1)
    if count < 2 or len(groups) != header["num_classes"]:
        yield "a gate needs experts, and one of them for each class"
    if any(type(g) is not int for g in groups) or set(groups) != set(known):
        yield f"the gate's groups are {groups!r}, expected each of its experts"
    if rule["branches"] not in ("reach", "dual"):
        yield f"branches are {rule['branches']!r}"


def _wrong_experts(header: Row, rule: Row) -> Iterator[str]:
    """What is wrong with the votes of the experts behind a gate."""
    if len(rule["experts"]) != len(rule["sigmas"]) - 1:
        yield f"{len(rule['experts'])} experts, expected one for each sigma but that of the gate"
    for expert in rule["experts"]:
        if type(expert) is not dict or not {"vote", "bound"} <= set(expert) <= {"vote", "bound", "offsets"}:
            yield f"an expert is {expert!r}, expected a vote and a bound"
            return
        offsets = expert.get("offsets")
        if expert["bound"] != "one-class":
            yield f"an expert is {expert!r}, expected a vote with a one-class bound"
        elif expert["vote"] != header["rule"]["vote"]:
            yield f"an expert has a {expert['vote']} vote, the rule a {header['rule']['vote']} vote"
        elif "offsets" in expert and (
            expert["vote"] != "pairwise"
            or type(offsets) is not list
            or len(offsets) != header["num_classes"]
            or any(type(b) is not float or not abs(b) <= 1e3 for b in offsets)
        ):
            yield f"the offsets of an expert are not those of a pairwise vote of {header['num_classes']} classes"


def commit_votes(pilots: Sequence[Row], header: Row, rule: Row) -> Made:
    """What the pilots commit to."""
    return (_cascade if rule["kind"] == "cascade" else _gated)(pilots, header, rule)


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


def _gated(pilots: Sequence[Row], header: Row, rule: Row) -> Made:
    *experts, gate = pilots
    picks = [_group(gate, rule, i) for i in range(len(experts))]
    chosen = picks.index(max(picks))
    scores = [(_of_expert(experts[chosen], header, rule, c), k) for c, k in enumerate(experts[chosen]["votes"])]
    top = scores.index(max(scores))
    far, slots = shown(gate, picks[chosen], header), []
    for i, part in enumerate(experts):
        away = rule["branches"] == "dual" or far >= _of_expert(part, header, rule, top)
        if i == chosen or not away:
            slots.append(i)
    return Made(top, slots if len(slots) == len(experts) else [*slots, len(experts)], chosen)


def _of_expert(part: Row, header: Row, rule: Row, c: int) -> float:
    """The margin of a class that an expert's pilot shows."""
    if duelled(rule, part.get("slot", 0)):
        return margin(part, header, rule, c)
    return shown(part, part["votes"][c], header)


def _group(part: Row, rule: Row, expert: int) -> int:
    """Votes of the classes by which the gate picks an expert."""
    votes: list[int] = [k for k, group in zip(part["votes"], rule["groups"], strict=True) if group == expert]
    return sum(votes)


def binds(pilot: Row, header: Row, rule: Row, made: Made) -> tuple[int, float]:
    """Count and threshold of the event that will bind at a pilot's sigma."""
    slot = pilot.get("slot", 0)
    if not duelled(rule, slot):
        return event(pilot, made, rule), threshold(made, slot, rule)
    found = binding(pilot, header, rule, made.top)
    assert found is not None, "a sigma of the class"
    return found


def event(part: Row, made: Made, rule: Row) -> int:
    """How often the one event of a measurement's scale happened, where votes are counted."""
    slot: int = part.get("slot", 0)
    votes: list[int] = part["votes"]
    if rule["kind"] == "gated" and slot == len(rule["sigmas"]) - 1:
        return _group(part, rule, made.chosen)
    if rule["kind"] == "cascade" and slot < made.chosen and not rule["reach"]:
        return sum(votes) - max(votes)
    return votes[made.top]


def threshold(made: Made, slot: int, rule: Row) -> float:
    """What its phi has to exceed."""
    if rule["kind"] == "gated":
        return 0.0
    tau: float = rule["taus"][slot]
    return tau if slot == made.chosen else -tau
