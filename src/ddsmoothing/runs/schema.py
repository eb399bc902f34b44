"""What a run folder holds, field by field. It knows no files and draws nothing."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import STATELESS, Claim, Measurement, Rule, StatelessRule, rule_for, stateless_rule
from ddsmoothing.claims.measurement import Count as Count
from ddsmoothing.claims.several import MOST_SIGMAS
from ddsmoothing.noise import LARGEST_LEVELS, LEVELS
from ddsmoothing.streams import Role

SCHEMA_VERSION: Final = 2
NOT_COMPARED: Final = {"created", "versions", "config", "behaviour"}  # what may differ when a run is continued

Reason = Literal[
    "certified", "abstained", "planned", "wrong", "out of reach", "kept", "cut", "answered"
]  # words of ours alone: they are shown and exported
Level = Literal["pointwise", "memory", "stateless"]
PILOT: Final = Role.PILOT.name.lower()
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Length = Annotated[float, Field(ge=0.0, le=1e6)]  # no sigma and no radius comes near it, and sums stay finite
Sigmas = Annotated[tuple[Annotated[float, Field(gt=0.0, le=1e6)], ...], Field(min_length=1, max_length=MOST_SIGMAS)]
Size = Annotated[int, Field(ge=0, le=2**40)]  # of a data set: more is no data set
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class DataIdentity(_Strict):
    """Fingerprint of a data set; ``sha256`` is of 64 inputs at even distances, ``labels_sha256`` of all labels."""

    name: str
    split: str
    length: Size
    transform: str
    sha256: Digest
    labels_sha256: Digest | None = None


class Subset(_Strict):
    """Which inputs of the data set: those with index 0, skip, 2 skip, .., at most ``max`` of them, ``size`` in all.

    Attributes:
        shard: ``(i, n)``: of these only the i-th, (i + n)-th, .., counted from 1, and ``size`` counts them alone.
    """

    skip: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] | None = None
    size: Size
    shard: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None


class ModelIdentity(_Strict):
    """The name a model was loaded by, the hash of its weights, and an id given by the user where there is no hash."""

    name: str
    sha256: Digest | None
    model_id: str | None = None


class PairsSpec(_Strict):
    """One sigma for each pair of classes; fields are those of ``PairTable``."""

    kind: Literal["pairs"]
    sigmas: Sigmas
    slots: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]


class CascadeSpec(_Strict):
    """The first of several sigmas that is sure answers; fields are those of ``Cascade``."""

    kind: Literal["cascade"]
    sigmas: Sigmas
    taus: tuple[Length, ...]
    reach: bool


class VoteSpec(_Strict):
    """How noisy answers at one sigma become the smoothed answer, and how its radius is bounded.

    Attributes:
        offsets: one a class, for a pairwise vote; None, and absent from the file, for none.
    """

    vote: Literal["pairwise", "plurality"]
    bound: Literal["one-class", "two-class"]
    offsets: tuple[float, ...] | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in plain(self).items() if value is not None}


class GatedSpec(_Strict):
    """Experts behind a gate of groups of classes; fields are those of ``Gated``."""

    kind: Literal["gated"]
    experts: tuple[VoteSpec, ...]
    sigmas: Sigmas
    groups: tuple[int, ...]
    branches: Literal["reach", "dual"]


class RuleSpec(VoteSpec):
    """The whole rule: part of the classifier. ``stateless``: how answers at several sigmas become one, else None."""

    stateless: Annotated[PairsSpec | CascadeSpec | GatedSpec, Field(discriminator="kind")] | None = None


class OffsetsNote(_Strict):
    """Where class offsets, or a pair table with its offsets, come from.

    Attributes:
        sha256: of their file.   seen: they were fitted on inputs of this run, so that its figures flatter them.
    """

    sha256: Digest
    seen: bool


class PolicySpec(_Strict):
    """Where sigmas came from: the start and range or finite set of a search, or the hash of a file of them."""

    sigma0: Annotated[Length, Field(gt=0.0)] | None = None
    sigma_min: Annotated[Length, Field(gt=0.0)] | None = None
    sigma_max: Annotated[Length, Field(gt=0.0)] | None = None
    sigma_grid: tuple[Annotated[Length, Field(gt=0.0)], ...] | None = None
    sha256: Digest | None = None


class Header(_Strict):
    """``header.json``: everything that defines a run.

    Attributes:
        rule: which smoothed classifier is meant.   offsets: where its class offsets or its pair table come from, None
            without a file.
        units: of sigma and radius.
        behaviour: classes that the base classifier gave to keyed noisy copies of the first inputs: drawn again when the
            run is continued, since a hash of weights does not see everything; None where it was not asked for.
        sampler, sampler_options: how many samples, see ``plan``.   label_aware: inputs whose pilot class was wrong were
            stopped.   shape, dtype: of an input; precision, channels_last, compiled, device, block_size: of the model's
            run.   numerics: how floats were computed there, see ``settled_numerics``; nothing on a CPU.
        any_range: inputs outside [0, 1] were let in on request.
        snap, levels: inputs were moved to the grid; its steps to the unit, 255 for 8-bit images.
        sigma_policy: ``fixed``, ``search``, ``file``, or ``rule`` where a stateless rule has its own.   sigma: the
            fixed one, else None.
        policy: options of the search.   config: options of the command that made it.
        level: what the certificates hold for; with ``fixed`` all levels coincide.
        versions: of the packages that made it.   created: UTC, ISO 8601.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    created: str
    versions: dict[str, str]
    model: ModelIdentity
    data: DataIdentity
    subset: Subset
    num_classes: Annotated[int, Field(ge=2)]
    norm: Literal["l1", "l2"]
    level: Level
    sigma_policy: Literal["fixed", "search", "file", "rule"]
    sigma: Annotated[Length, Field(gt=0.0)] | None
    rule: RuleSpec
    offsets: OffsetsNote | None = None
    units: str
    sampler: str
    sampler_options: dict[str, Any]
    randomized: bool
    label_aware: bool
    alpha: Probability
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    dtype: str
    precision: str
    channels_last: bool
    compiled: bool
    snap: bool
    levels: Annotated[int, Field(ge=1, le=LARGEST_LEVELS)] = LEVELS
    any_range: bool = False
    device: str
    numerics: dict[str, bool] = Field(default_factory=dict)
    block_size: Annotated[int, Field(ge=1)]
    behaviour: tuple[Count, ...] | None = None
    policy: PolicySpec
    config: dict[str, Any]

    @property
    def vote(self) -> str:
        """``pairwise`` or ``plurality``."""
        return self.rule.vote

    @property
    def bound(self) -> str:
        """``one-class`` or ``two-class``."""
        return self.rule.bound

    @model_validator(mode="after")
    def _one_level(self) -> Header:
        signs = (self.rule.stateless is not None, self.sigma_policy == "rule", self.level == STATELESS.name)
        if any(signs) != all(signs):
            raise ValueError("a rule over several sigmas, the policy rule and the level stateless belong together")
        if self.stateless is not None and (self.rule.vote, self.rule.bound) != (self.stateless.vote, "one-class"):
            raise ValueError(f"the stateless rule has a {self.stateless.vote} vote and a one-class bound")
        return self

    @property
    def judge(self) -> Rule:
        """The rule that rows of one sigma are judged by."""
        return rule_for(self.rule.vote, self.rule.bound, offsets=self.rule.offsets, norm=self.norm)

    @property
    def stateless(self) -> StatelessRule | None:
        """The rule over several sigmas that rows are judged by, None where there is one sigma a row."""
        return _stateless(self.rule, self.num_classes, self.norm)

    def claim(self, row: ResultRow, alpha: float | None = None) -> Claim:
        """What a row's measurements claim at the run's alpha, or at a smaller one, fixed before they were drawn.

        Errs low; whatever the row itself says is not looked at.
        """
        certificate, share = certificate_for(self.norm), self.alpha if alpha is None else min(alpha, self.alpha)
        factor = 1.0 if share == self.alpha else share / self.alpha * (1.0 - 2.0**-50)
        if self.stateless is not None:
            several = [one.shrunk(factor) for one in row.certifying]
            return self.stateless.claim(row.pilots, several, certificate, share, row.moved)
        fresh = None if row.fresh is None else row.fresh.shrunk(factor)
        return self.judge.claim(row.pilot, fresh, certificate, share, row.moved)


@lru_cache(maxsize=16)
def _stateless(rule: RuleSpec, num_classes: int, norm: str) -> StatelessRule | None:
    if rule.stateless is None:
        return None
    found = stateless_rule(rule.stateless.model_dump(), num_classes=num_classes, norm=norm, offsets=rule.offsets)
    found.check_alone()
    return found


class SigmaChoice(_Strict):
    """How the search came to a row's sigma; no part of the certificate.

    Attributes:
        anchor: the class whose radius it made large; the certified class may be another.   score: the radius it hoped
            for.   at_border: sigma lies at an end of the range.   samples: forward passes it took.
    """

    anchor: Count
    score: float
    at_border: bool
    samples: Count


class MemoryNote(_Strict):
    """What a certified memory made of a row; numbers of regions and attempts are those of its file.

    Attributes:
        kind: ``kept``, ``cut`` (by the region ``by``), ``answered`` (from the region ``by``) or ``abstained``.
        certified: the run's radius at the memory's alpha, before any rule.   prediction: the run's class.
        region: the one stored for this row.   attempt, alpha: its share of the memory's risk; None where answered.
        floor: radius that holds in any order of queries, where it was asked for; floor_measurements: its counts, one
            measurement for each sigma of the run's set.
    """

    kind: Literal["kept", "cut", "answered", "abstained"]
    certified: Length
    prediction: Annotated[int, Field(ge=-1, lt=2**63)]
    by: Count | None = None
    region: Count | None = None
    attempt: Count | None = None
    alpha: Probability | None = None
    floor: Length | None = None
    floor_measurements: tuple[Measurement, ...] = ()


class ResultRow(_Strict):
    """One line of ``results.jsonl``: measurements, and the claims that follow from them and the header.

    Attributes:
        p_lower, p_upper: bounds on the event that binds, and on what it is held against; see ``claims.Claim``.
        sigma: standard deviation of the noise; of several that which binds, the first one where nothing was drawn.
        lambda_: half-width of uniform noise (``lambda`` in the file), None for Gaussian noise.
        moved: bound on the distance the input was moved to the grid (``snap``), subtracted from the radius.
        choice: how a search chose sigma, None without one.
        measurements: the pilot that chose the class, then the fresh samples that bound it, if any were drawn; for a
            stateless rule a pilot at each sigma, then samples at those of them that bound the class.
        samples: of all measurements.
        seconds: wall time of choice and certification, the batch's divided by its inputs.
        memory: what a certified memory made of it, at level ``memory``.
    """

    id: Annotated[int, Field(ge=0, lt=2**64)]
    input_sha256: Digest
    label: Count | None
    prediction: Annotated[int, Field(ge=-1, lt=2**63)]
    correct: bool | None
    reason: Reason
    radius: Length
    p_lower: Probability
    p_upper: Probability
    sigma: Annotated[Length, Field(gt=0.0)]
    lambda_: Annotated[float | None, Field(alias="lambda")]
    noise: Literal["grid", "float"]
    moved: Annotated[float, Field(ge=0.0)]
    choice: SigmaChoice | None
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1)]
    samples: Count
    seconds: Annotated[float, Field(ge=0.0, le=1e12)]
    memory: MemoryNote | None = None

    @property
    def pilots(self) -> tuple[Measurement, ...]:
        """What chose the class."""
        return tuple(one for one in self.measurements if one.role == PILOT)

    @property
    def certifying(self) -> tuple[Measurement, ...]:
        """What bounds it; none where nothing was drawn."""
        return tuple(one for one in self.measurements if one.role != PILOT)

    @property
    def pilot(self) -> Measurement:
        """What chose the class; of several the one at the row's sigma."""
        return next(one for one in self.pilots if one.sigma == self.sigma)

    @property
    def fresh(self) -> Measurement | None:
        """What bounds it, None where nothing was drawn; of several the one at the row's sigma."""
        return next((one for one in self.certifying if one.sigma == self.sigma), None)

    @property
    def tv(self) -> float:
        """Bound on the total-variation distance of the drawn noise to the theorem's; 0 where it is not known."""
        return max(one.tv for one in self.measurements)

    def line(self) -> str:
        """As the file holds it."""
        shown = self.model_dump(mode="json", by_alias=True)
        shown["measurements"] = [one.compact() for one in self.measurements]
        if self.memory is not None:
            shown["memory"]["floor_measurements"] = [one.compact() for one in self.memory.floor_measurements]
        return json.dumps(shown, separators=(",", ":"))
