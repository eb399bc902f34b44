"""Rows of rules over several sigmas: what the pilots ask for, and what the counts give; see ``verify``.

``G(x) = A`` while every atom "A beats b" has its phi, at the sigma of the pair (A, b), above ``beta_b - beta_A``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, Final

from scipy.special import betaincinv, ndtr

from ddsmoothing.verify.budget import LARGEST_SIGMA, NOTHING, Tables, check_noise, one_number
from ddsmoothing.verify.counts import MOST_DUELLISTS, Judged, Row, above_thresholds, counted, event_holds, seen, wins
from ddsmoothing.verify.duels import betas_of, duelled, has_rivals, largest, margin, phi_at, rivals_of, slot_of
from ddsmoothing.verify.offsets import Atom
from ddsmoothing.verify.votes import FIELDS, Made, binds, commit_votes, event, threshold, wrong_votes

KINDS: Final = {"pairs": {"kind", "sigmas", "slots", "groups"}} | FIELDS
VOTES: Final = {"pairs": ("pairwise",), "cascade": ("plurality",), "gated": ("pairwise", "plurality")}
PARTS: Final = 32  # steps in which the samples are divided
NEAR: Final = 1e-9  # expected margins so close may change places
MOST_SIGMAS: Final = 1000


def several(header: Row) -> Row | None:
    """The rule over several sigmas of a header, None where it has none."""
    found: Row | None = header["rule"].get("stateless")
    return found


def wrong_rule(header: Row) -> Iterator[str]:
    """What is wrong with the rule over several sigmas that a header states."""
    rule = several(header)
    if (rule is None) == (header["sigma_policy"] == "rule"):
        yield "the policy rule belongs to a rule over several sigmas, and only there"
    if rule is None:
        if header["level"] == "stateless":
            yield "the level stateless belongs to a rule over several sigmas"
        if header["sampler"] == "divided":
            yield "the sampler divided belongs to a rule over several sigmas"
        return
    if rule.get("kind") not in KINDS:
        yield f"the rule is {rule.get('kind')!r}, expected one of {', '.join(KINDS)}"
        return
    votes, fields = VOTES[rule["kind"]], KINDS[rule["kind"]]
    if set(rule) != fields or header["rule"]["vote"] not in votes or header["rule"]["bound"] != "one-class":
        yield f"the rule {rule['kind']} has a {' or '.join(votes)} vote, a one-class bound, and {sorted(fields)}"
        return
    if header["level"] != "stateless" or header["randomized"] or header["sampler"] != "divided":
        yield "a rule over several sigmas is of level stateless, without a coin, with the sampler divided"
        return
    yield from _wrong_sigmas(header, rule)
    yield from (_wrong_table if rule["kind"] == "pairs" else wrong_votes)(header, rule)


def _wrong_sigmas(header: Row, rule: Row) -> Iterator[str]:
    sigmas, options = rule["sigmas"], header["sampler_options"]
    numbers = type(sigmas) is list and all(type(s) is float and 0 < s <= LARGEST_SIGMA for s in sigmas)
    if not numbers or not 1 <= len(set(sigmas)) == len(sigmas) <= MOST_SIGMAS:
        yield f"the sigmas of the rule are {sigmas!r}"
    elif header["policy"].get("sigma_grid") != sorted(sigmas):
        yield "the policy's set of sigmas is not that of the rule"
    elif set(options) != {"n0", "n", "scales"} or any(type(k) is not int or k < 1 for k in options.values()):
        yield f"the sampler's options are {options!r}, expected n0, n and scales"
    elif options["scales"] != len(sigmas):
        yield f"the sampler has {options['scales']} scales, the rule {len(sigmas)} sigmas"


def _wrong_table(header: Row, rule: Row) -> Iterator[str]:
    slots, groups, size = rule["slots"], rule["groups"], len(rule["slots"])
    known = range(len(rule["sigmas"]))
    if any(len(row) != size or any(type(k) is not int or k not in known for k in row) for row in slots):
        yield "the table is not square, or names a sigma that is not there"
    elif any(slots[a][b] != slots[b][a] for a in range(size) for b in range(a)):
        yield "the table gives a pair of classes two sigmas, so that both could win"
    elif len(groups) != header["num_classes"] or any(type(g) is not int or g not in range(size) for g in groups):
        yield f"the groups are not those of {header['num_classes']} classes"


def _at(row: Row, part: Row) -> Row:
    """The row as if it were of this measurement alone."""
    half_width = None if row["lambda"] is None else math.sqrt(3.0) * part["sigma"]
    return dict(row, sigma=part["sigma"], measurements=[part], **{"lambda": half_width})


def check_several(row: Row, header: Row, tables: Tables) -> Iterator[str]:
    """What is impossible in a row's measurements, or not what its pilots ask for."""
    rule = several(header)
    assert rule is not None
    wrong = list(_places(row, header, rule))
    yield from wrong
    if wrong:
        return
    pilots, fresh = _parts(row)
    for part in row["measurements"]:
        yield from check_noise(_at(row, part), header, tables)
    if row["noise"] == "grid":
        yield from _sizes(row, header, tables)
    total = sum(part["n"] for part in row["measurements"])
    if row["samples"] != total:
        yield f"samples is {row['samples']}, the measurements have {total}"
    made = committed(pilots, header, rule)
    wrong_class = bool(header["label_aware"]) and row["label"] != made.top
    if bool(fresh) == wrong_class or (not fresh and row["reason"] != "wrong"):
        yield "sampling stops where labels show that the pilots' class is wrong, and only there"
        return
    if row["sigma"] not in [part["sigma"] for part in fresh or pilots[:1]]:
        yield f"sigma is {row['sigma']}, at which nothing was drawn that certifies"
    if fresh:
        yield from _asked(fresh, pilots, header, rule, made)


def _parts(row: Row) -> tuple[list[Row], list[Row]]:
    """Pilots, and what certifies."""
    pilots = [part for part in row["measurements"] if part["role"] == "pilot"]
    return pilots, row["measurements"][len(pilots) :]


def _places(row: Row, header: Row, rule: Row) -> Iterator[str]:
    """Role, slot, sigma and counts of every measurement."""
    sigmas, classes = rule["sigmas"], header["num_classes"]
    roles = [part["role"] for part in row["measurements"]]
    slots = [part.get("slot", 0) for part in row["measurements"]]
    count, later = len(sigmas), slots[len(sigmas) :]
    if roles != ["pilot"] * count + ["certify"] * len(later) or slots[:count] != list(range(count)):
        yield "the measurements are not a pilot at each sigma and what certifies"
        return
    if later != sorted(set(later)) or any(type(k) is not int or not 0 <= k < count for k in later):
        yield "what certifies is not in the order of the sigmas, each once"
        return
    for part, slot in zip(row["measurements"], slots, strict=True):
        yield from counted(
            {key: value for key, value in part.items() if key not in ("rivals", "slot")},
            classes,
            {"sigma": sigmas[slot]},
        )
        if part["role"] == "pilot":
            yield from _pilot(part, header, rule, slot)


def _pilot(part: Row, header: Row, rule: Row, slot: int) -> Iterator[str]:
    """Whether a pilot counts what the rule asks for, with rivals that it holds its classes against."""
    classes, n0 = header["num_classes"], header["sampler_options"]["n0"]
    duels = classes <= MOST_DUELLISTS and duelled(rule, slot)
    rivals = duels and has_rivals(rule, slot)
    if ("least" in part) != duels or ("rivals" in part) != rivals or "wins" in part or part.get("looks"):
        yield "the pilot does not count what the rule asks for"
        return
    if rivals and len(part["rivals"]) != classes:
        yield f"rivals of the pilot are {len(part['rivals'])}, expected one of each of {classes} classes"
        return
    if part["n"] != n0:
        yield f"the pilot has {part['n']} samples, the header says {n0}"
    for c, b in enumerate(part.get("rivals", ())):
        held = rivals_of(header, rule, slot, c)
        if type(b) is not int or (b not in held if held else b != c):
            yield f"the pilot holds class {c} against {b}, which the rule does not at sigma {part['sigma']}"
            return
        k, n = part["least"][c], part["n"]
        if b != c and (k + part["votes"][b] > n or (part["rivals"][b] == c and k + part["least"][b] != n)):
            yield f"the pilot's wins of class {c} against {b} do not fit what {b} has"  # one of both wins each sample
            return


def _sizes(row: Row, header: Row, tables: Tables) -> Iterator[str]:
    """Whether the budgets at all sigmas are of inputs of one size."""
    sizes = set()
    for part in row["measurements"]:
        at = _at(row, part)
        one = one_number(at, header) if tables.has(at, header) else Fraction(0)
        if one > NOTHING:
            sizes.add(round(Fraction(part.get("tv", 0)) / one))
    if len(sizes) > 1:
        yield f"the budgets of the noise are of inputs of {' and '.join(map(str, sorted(sizes)))} numbers"


def chosen(pilots: Sequence[Row], header: Row, rule: Row) -> int:
    """The class that the pilots choose: the largest smallest margin, then the most votes, then the first."""
    scores = []
    for c in range(header["num_classes"]):
        margins = [margin(pilot, header, rule, c) for pilot in pilots]
        scores.append((min(margins), sum(pilot["votes"][c] for pilot in pilots), -c))
    return scores.index(max(scores))


def committed(pilots: Sequence[Row], header: Row, rule: Row) -> Made:
    """What the pilots commit to."""
    if rule["kind"] != "pairs":
        return commit_votes(pilots, header, rule)
    top = chosen(pilots, header, rule)
    return Made(top, sorted({slot_of(rule, top, b) for b in range(header["num_classes"]) if b != top}))


def _asked(fresh: list[Row], pilots: list[Row], header: Row, rule: Row, made: Made) -> Iterator[str]:
    """Whether the samples that certify are of the class, the sigmas and the numbers that the pilots ask for."""
    if [part.get("slot", 0) for part in fresh] != made.slots:
        yield f"what certifies class {made.top}, which the pilots chose, is not at the sigmas that they ask for"
        return
    for part in fresh:
        looks, pairs = seen(part), duelled(rule, part.get("slot", 0))
        others = "least" in part or "rivals" in part or part.get("coin") is not None or ("wins" in part) != pairs
        if others or part.get("anchor") != (made.top if pairs else None):
            yield f"what certifies does not count what class {made.top} needs, which the pilots chose"
            return
        events = part["wins"] if pairs else [event(part, made, rule)]
        if len(looks) != 1 or looks[0][:2] != (part["n"], events):
            yield "the look is not the counts"
            return
        if looks[0][2] != Fraction(header["alpha"]):
            yield f"the look has alpha {float(looks[0][2]):g}, the run's is {header['alpha']:g}"
    sizes = [part["n"] for part in fresh]
    if sum(sizes) != header["sampler_options"]["n"] or sizes not in [
        _divided(pilots, header, rule, made, favour) for favour in (None, *made.slots)
    ]:
        yield f"{sizes} fresh samples, which is not how the pilots divide {header['sampler_options']['n']}"


def _divided(pilots: list[Row], header: Row, rule: Row, made: Made, favour: int | None) -> list[int]:
    """How many samples each sigma gets: step by step that which is expected to bind.

    Args:
        favour: a sigma that comes first where two are all but alike.
    """
    alpha, n, plans = header["alpha"], header["sampler_options"]["n"], {}
    for slot in made.slots:
        plans[slot] = binds(pilots[slot], header, rule, made)
    sizes = {}
    for slot in made.slots:
        most = largest(header, rule, slot, made.top) if duelled(rule, slot) else threshold(made, slot, rule)
        needed = _needed(most, rule["sigmas"][slot], header)
        sizes[slot] = max(1, math.floor(math.log(alpha) / math.log(needed)) + 1)
    left = n - sum(sizes.values())
    step = max(1, left // PARTS)

    def expected(slot: int) -> float:
        count, limit = plans[slot]
        share, m = (count + 0.5) / (pilots[slot]["n"] + 1.0), sizes[slot]
        lower = float(betaincinv(m * share, m * (1.0 - share) + 1.0, alpha))
        return phi_at(lower, rule["sigmas"][slot], header) - limit - (NEAR if slot == favour else 0.0)

    while left > 0:
        slot = min(made.slots, key=lambda k: (expected(k), k))
        sizes[slot] += min(step, left)
        left -= min(step, left)
    return [sizes[slot] for slot in made.slots]


def _needed(threshold: float, sigma: float, header: Row) -> float:
    """The probability at which an event's phi is at its threshold, kept away from 0 and 1."""
    if header["norm"] == "l2":
        found = float(ndtr(threshold / sigma))
    else:
        found = 0.5 + threshold / (2.0 * math.sqrt(3.0) * sigma)
    return min(max(found, 1e-9), 1.0 - 1e-9)


def judged_several(row: Row, header: Row) -> Judged:
    """What the counts of all sigmas give together, held against the bounds that the row states."""
    rule: Any = several(header)
    pilots, fresh = _parts(row)
    made = committed(pilots, header, rule)
    top = made.top
    if not fresh:
        wrong = ["there is a bound without fresh samples"] if row["p_lower"] > 0 or row["p_upper"] < 1 else []
        return Judged(top=top, certified=False, radius=(Fraction(0), Fraction(0)), wrong=wrong)
    atoms: list[Atom] = []
    for part in fresh:
        at, slot = _at(row, part), part.get("slot", 0)
        if duelled(rule, slot):
            betas = betas_of(header, rule, slot)
            held = rivals_of(header, rule, slot, top)
            atoms += wins(part, at, {b: Fraction(betas[b] - betas[top]) for b in held})
        else:
            limit, tv = Fraction(threshold(made, slot, rule)), Fraction(part.get("tv", 0))
            atoms.append(Atom(f"the votes at sigma {at['sigma']}", limit, at, tv, partial(event_holds, part, 0)))
    return above_thresholds(row, header, atoms, top)
