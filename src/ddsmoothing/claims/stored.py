"""What the JSON of a certification or a prediction holds, checked when it is read. It knows no files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ddsmoothing.claims.levels import LEVELS
from ddsmoothing.claims.measurement import Measurement
from ddsmoothing.claims.named import rule_for
from ddsmoothing.claims.rules import Rule
from ddsmoothing.errors import InputError
from ddsmoothing.shown import Form

Sigma = Annotated[float, Field(gt=0.0, le=1e6)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class RuleForm(Form):
    """How noisy answers become the smoothed answer."""

    vote: str
    bound: str
    offsets: tuple[float, ...] | None = None


class EvidenceForm(Form):
    """What a prediction holds; each field is that of ``Evidence``."""

    ids: tuple[Annotated[int, Field(ge=0, lt=2**64)], ...]
    input_sha256: tuple[Digest, ...]
    d: Annotated[int, Field(ge=1)]
    pilots: tuple[Measurement, ...]
    fresh: tuple[Measurement | None, ...]
    rule: RuleForm
    norm: Literal["l1", "l2"]
    sigma: tuple[Sigma, ...]
    noise: tuple[Literal["grid", "float"], ...]
    levels: Annotated[int, Field(ge=1)]
    moved: tuple[Annotated[float, Field(ge=0.0)], ...]
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    block_size: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0.0)]
    num_classes: Annotated[int, Field(ge=2)]


class CertificationForm(EvidenceForm):
    """What a certification holds beside that."""

    stopped: tuple[str | None, ...]
    sampler: str
    level: str


def rule_of(form: RuleForm, norm: str) -> Rule:
    """The rule that was stored."""
    return rule_for(form.vote, form.bound, offsets=form.offsets, norm=norm)


def check_stored(read: dict[str, Any]) -> None:
    """Raise InputError where measurements do not fit what is said of them: they would claim what nothing shows."""
    rule, classes, alpha = read["rule"], read["num_classes"], read["alpha"]
    if read.get("level", next(iter(LEVELS))) not in LEVELS:
        raise InputError(f"the level is {read['level']!r}, expected one of {', '.join(LEVELS)}.")
    for i, (sigma, pilot, fresh) in enumerate(zip(read["sigma"], read["pilots"], read["fresh"], strict=True)):
        for one in (pilot,) if fresh is None else (pilot, fresh):
            parts = [part for part in (one.votes, one.least, one.rivals, one.wins) if part is not None]
            if one.sigma != sigma or sum(one.votes) != one.n or any(len(part) != classes for part in parts):
                raise InputError(f"the measurements of input {i} do not fit its sigma and its {classes} classes.")
            if sum(look.alpha for look in one.looks) > alpha * (1.0 + 1e-12):
                raise InputError(f"the looks at input {i} spend more than alpha, {alpha:g}.")
        if fresh is None:
            continue
        top = rule.choose(pilot)
        if rule.asks_twice and (fresh.wins is None or fresh.anchor != top):
            raise InputError(f"the samples of input {i} do not count the wins of class {top}, which its pilot chose.")
        if any(look.counts != rule.counts(fresh, top) for look in fresh.looks if look.n == fresh.n):
            raise InputError(f"the looks at input {i} are not at its samples.")
