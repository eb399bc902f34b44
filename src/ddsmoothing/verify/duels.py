"""Pairwise votes at several sigmas: which classes are held against each other where, and what a pilot shows of them.

In a pair table each pair of classes has its sigma, and the offsets are the run's. Behind a gate each expert holds all
classes against each other at its sigma, with offsets of its own. See ``verify``.
"""

from __future__ import annotations

import math
from typing import Any

from scipy.special import ndtri

from ddsmoothing.verify.offsets import offsets_of

Row = dict[str, Any]


def duelled(rule: Row, slot: int) -> bool:
    """Whether wins of a class are counted at a slot, and not votes."""
    if rule["kind"] == "gated":
        return slot < len(rule["experts"]) and rule["experts"][slot]["vote"] == "pairwise"
    return bool(rule["kind"] == "pairs")


def has_rivals(rule: Row, slot: int) -> bool:
    """Whether a pilot that counts duels keeps the rival of each class."""
    return rule["kind"] == "pairs" or "offsets" in rule["experts"][slot]


def slot_of(rule: Row, a: int, b: int) -> int:
    """Which sigma a pair of classes of a table has."""
    found: int = rule["slots"][rule["groups"][a]][rule["groups"][b]]
    return found


def rivals_of(header: Row, rule: Row, slot: int, c: int) -> list[int]:
    """The classes that a class is held against at a slot."""
    if rule["kind"] != "pairs":
        return [b for b in range(header["num_classes"]) if b != c]
    row = rule["slots"][rule["groups"][c]]
    return [b for b, group in enumerate(rule["groups"]) if row[group] == slot and b != c]


def betas_of(header: Row, rule: Row, slot: int) -> list[float]:
    """The offsets of the classes at a slot, 0 where there are none."""
    found = offsets_of(header) if rule["kind"] == "pairs" else rule["experts"][slot].get("offsets")
    return found or [0.0] * header["num_classes"]


def binding(pilot: Row, header: Row, rule: Row, c: int) -> tuple[int, float] | None:
    """The count of the event that binds a class at a pilot's sigma and its threshold; None where it has no pair."""
    slot = pilot.get("slot", 0)
    held, betas = rivals_of(header, rule, slot, c), betas_of(header, rule, slot)
    if not held:
        return None
    rival = max(held, key=lambda b: (betas[b], -b))
    if "rivals" in pilot:
        rival = pilot["rivals"][c]
    return pilot["least" if "least" in pilot else "votes"][c], betas[rival] - betas[c]


def margin(pilot: Row, header: Row, rule: Row, c: int) -> float:
    """The smallest margin that a pilot shows of a class, infinite where it is held against none."""
    found = binding(pilot, header, rule, c)
    return math.inf if found is None else shown(pilot, found[0], header) - found[1]


def largest(header: Row, rule: Row, slot: int, top: int) -> float:
    """The largest threshold of a class at a slot."""
    betas = betas_of(header, rule, slot)
    return max(betas[b] - betas[top] for b in rivals_of(header, rule, slot, top))


def phi_at(share: float, sigma: float, header: Row) -> float:
    """Of an event of this probability, in floats."""
    if header["norm"] == "l2":
        return sigma * float(ndtri(share))
    return 2.0 * math.sqrt(3.0) * sigma * (share - 0.5)


def shown(part: Row, count: int, header: Row) -> float:
    """The phi that a pilot shows of an event that happened so often."""
    return phi_at((count + 0.5) / (part["n"] + 1.0), part["sigma"], header)
