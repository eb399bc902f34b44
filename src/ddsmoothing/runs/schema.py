"""What a run folder holds, field by field. It knows no files and draws nothing."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ddsmoothing.noise import LARGEST_LEVELS, LEVELS

SCHEMA_VERSION: Final = 1
NOT_COMPARED: Final = {"created", "versions", "config"}  # what may differ when a run is continued

Level = Literal["pointwise", "memory", "stateless"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Length = Annotated[float, Field(ge=0.0, le=1e6)]  # no sigma and no radius comes near it, and sums stay finite
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class DataIdentity(_Strict):
    """Fingerprint of a data set; ``sha256`` is of 64 inputs at even distances."""

    name: str
    split: str
    length: Count
    transform: str
    sha256: Digest


class Subset(_Strict):
    """Which inputs of the data set: those with index 0, skip, 2 skip, .., at most ``max`` of them, ``size`` in all.

    Attributes:
        shard: ``(i, n)``: of these only the i-th, (i + n)-th, .., counted from 1, and ``size`` counts them alone.
    """

    skip: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] | None = None
    size: Count
    shard: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None


class ModelIdentity(_Strict):
    """The name a model was loaded by, the hash of its weights, and an id given by the user where there is no hash."""

    name: str
    sha256: Digest | None
    model_id: str | None = None


class Header(_Strict):
    """``header.json``: everything that defines a run.

    Attributes:
        sampler, sampler_options: how many samples, see ``plan``.   label_aware: inputs whose pilot class was wrong were
            stopped.   shape, dtype: of an input; precision, channels_last, compiled, device, block_size: of the model's
            run.
        snap, levels: inputs were moved to the grid; its steps to the unit, 255 for 8-bit images.
        sigma_policy: ``fixed``, ``search`` or ``file``.   sigma: the fixed one, else None.
        policy: options of the search.   config: options of the command that made it.
        level: what the certificates hold for; with ``fixed`` all levels coincide.
        versions: of the packages that made it.   created: UTC, ISO 8601.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    versions: dict[str, str]
    model: ModelIdentity
    data: DataIdentity
    subset: Subset
    num_classes: Annotated[int, Field(ge=2)]
    norm: Literal["l1", "l2"]
    level: Level
    sigma_policy: Literal["fixed", "search", "file"]
    sigma: Annotated[Length, Field(gt=0.0)] | None
    sampler: str
    sampler_options: dict[str, Any]
    bound: str
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
    device: str
    block_size: Annotated[int, Field(ge=1)]
    policy: dict[str, Any]
    config: dict[str, Any]


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
        floor: radius that holds in any order of queries, where it was asked for.
    """

    kind: Literal["kept", "cut", "answered", "abstained"]
    certified: Length
    prediction: Annotated[int, Field(ge=-1, lt=2**63)]
    by: Count | None = None
    region: Count | None = None
    attempt: Count | None = None
    alpha: Probability | None = None
    floor: Length | None = None


class ResultRow(_Strict):
    """One line of ``results.jsonl``: evidence (counts and how they were drawn) and the claims that follow from it.

    Attributes:
        lambda_: half-width of uniform noise (``lambda`` in the file), None for Gaussian noise.
        tv: bound on the total-variation distance of the drawn noise to the theorem's, subtracted from the bound.
        looks: counts ``(n, k, alpha)`` of the top class that a lower bound may be taken from; the largest is.
        coin: of the randomised bound, None for the plain one.
        moved: bound on the distance the input was moved to the grid (``snap``), subtracted from the radius.
        choice: how a search chose sigma, None without one.   samples: n0 + n.
        seconds: wall time of choice and certification, the batch's divided by its inputs.
        memory: what a certified memory made of it, at level ``memory``.
    """

    id: Annotated[int, Field(ge=0, lt=2**64)]
    input_sha256: Digest
    label: Count | None
    prediction: Annotated[int, Field(ge=-1, lt=2**63)]
    correct: bool | None
    reason: str
    radius: Length
    p_lower: Probability
    p_upper: Probability
    sigma: Annotated[Length, Field(gt=0.0)]
    lambda_: Annotated[float | None, Field(alias="lambda")]
    norm: Literal["l1", "l2"]
    noise: Literal["grid", "float"]
    tv: Annotated[float, Field(ge=0.0)]
    moved: Annotated[float, Field(ge=0.0)]
    sampler: str
    bound: str
    alpha: Probability
    level: Level
    choice: SigmaChoice | None
    n0_counts: tuple[Count, ...]
    n_counts: tuple[Count, ...]
    looks: tuple[tuple[Count, Count, Probability], ...]
    coin: Annotated[float, Field(gt=0.0, le=1.0)] | None
    samples: Count
    seconds: Annotated[float, Field(ge=0.0, le=1e12)]
    memory: MemoryNote | None = None
