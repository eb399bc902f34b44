"""The certificate card of a run: ``certificate.json``, and the same in Markdown. Figures are rounded to the safe side.

``certificate.schema.json``, shipped beside this file, describes it.
"""

from __future__ import annotations

import hashlib
import math
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ddsmoothing import analysis
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import level_named
from ddsmoothing.errors import RunError, printable
from ddsmoothing.files import write_durably
from ddsmoothing.report.claims import SetRisk, down, limits, radii_for, set_risk, share_down, statement, up
from ddsmoothing.report.render import render_markdown
from ddsmoothing.runs import Run
from ddsmoothing.runs.schema import Count, DataIdentity, Digest, Level, ModelIdentity, Probability, Subset
from ddsmoothing.runs.store import RESULTS
from ddsmoothing.tables.comparable import labelled
from ddsmoothing.tables.facts import certified
from ddsmoothing.tables.numbers import significant
from ddsmoothing.verify import Points, verify_run

SCHEMA: Final = "certificate.schema.json"
Amount = Annotated[float, Field(ge=0.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ThreatModel(_Part):
    """What may be done to an input; ``units`` are those of sigma and radius."""

    norm: Literal["l1", "l2"]
    ball: Literal["open"] = "open"
    perturbation: str
    units: str


class Claim(_Part):
    """What one certificate says: ``level`` names the classifier it is about."""

    level: Level
    statement: str


class Risk(_Part):
    """How likely certificates are false: one, and all ``certifications`` together.

    ``expected_false_at_most`` also bounds the probability that any is false. At most ``false_at_most`` are false with
    probability at least ``1 - rho``.
    """

    alpha: Probability
    certifications: Count
    expected_false_at_most: Amount
    rho: Probability
    false_at_most: Count


class Method(_Part):
    """How samples were drawn and bounded; ``tv`` and ``moved`` are the largest of any input, and subtracted already.

    Inputs with grid noise are multiples of ``1 / levels``; ``snap``: others were moved there.
    """

    noise: Literal["gaussian", "uniform"]
    inputs_with_grid_noise: Count
    inputs_with_float_noise: Count
    levels: Count
    snap: bool
    tv: Amount
    moved: Amount
    sampler: str
    sampler_options: dict[str, Any]
    vote: str
    bound: str
    offsets: tuple[float, ...] | None = None
    stateless: dict[str, Any] | None = None
    randomized: bool
    label_aware: bool
    samples_per_input: Amount
    seed: Count


class Sigma(_Part):
    """Where sigma comes from, and what it was; ``fixed`` is null where it depends on the input."""

    policy: Literal["fixed", "search", "file", "rule"]
    options: dict[str, Any]
    fixed: Amount | None
    smallest: Amount
    median: Amount
    largest: Amount


class Model(ModelIdentity):
    """The base classifier, and the form in which it ran, which is what was certified."""

    num_classes: Count
    dtype: str
    precision: str
    channels_last: bool
    compiled: bool
    device: str
    block_size: Count


class Data(DataIdentity):
    """The data set and which inputs of it; ``finished`` of ``subset.size`` have a result."""

    subset: Subset
    finished: Count
    partial: bool


class Interval(_Part):
    """A figure and its 95 % interval over inputs; figure and ``low`` are rounded down, ``high`` up."""

    value: Amount
    low: Amount
    high: Amount


class AtRadius(Interval):
    """Certified accuracy at a radius.

    ``of_these_inputs`` is a lower bound for exactly these inputs that allows for ``false_at_most`` false certificates;
    null at level memory, where one region may answer many inputs.
    """

    radius: Amount
    of_these_inputs: Probability | None


class Results(_Part):
    """What was found; the accuracies are null without labels, the average also where sampling stopped at a radius."""

    inputs: Count
    certified: Count
    abstained: Count
    correct: Count | None
    certified_accuracy: list[AtRadius] | None
    average_certified_radius: Interval | None
    median_radius: Amount
    largest_radius: Amount


class Card(_Part):
    """A certificate card: what one run certified, how, and what it does not claim.

    ``evidence`` is the SHA-256 of the run's ``results.jsonl``.
    """

    schema_version: Literal[2] = 2
    run: str
    created: str
    evidence: Digest
    claim: Claim
    threat_model: ThreatModel
    risk: Risk
    method: Method
    sigma: Sigma
    model: Model
    data: Data
    software: dict[str, str]
    results: Results
    limits: list[str]


def card_of(run: Run, store: Path | None = None, point: Points | None = None) -> Card:
    """The card of a run.

    Args:
        store: the memory's file, for a run of level ``memory``: rows that it answered are checked against it first.
        point: gives an input by its id as flat stored numbers: how far it lies from the region that answered.
    Raises: RunError for a memory's run that certified nothing itself, and for one whose memory does not bear it out.
    """
    header, rows, risk = run.header, run.rows, set_risk(run)
    if risk is None:
        raise RunError(
            f"{run.path} certified nothing: its memory answered from earlier regions; use the run they are of."
        )
    _check_answers(run, store, point)
    on_grid = sum(row.noise == "grid" for row in rows)
    return Card(
        run=printable(run.name),
        created=header.created,
        evidence=hashlib.sha256((run.path / RESULTS).read_bytes()).hexdigest(),
        claim=Claim(level=header.level, statement=statement(header, risk)),
        threat_model=ThreatModel(
            norm=header.norm,
            perturbation=f"any that is smaller than the radius in the {header.norm.upper()} norm, chosen with full "
            "knowledge of model, sigma and certificate" + level_named(header.level).perturbation,
            units=header.units,
        ),
        risk=Risk(
            alpha=risk.alpha,
            certifications=risk.certifications,
            expected_false_at_most=_short(risk),
            rho=risk.rho,
            false_at_most=risk.false,
        ),
        method=Method(
            noise=certificate_for(header.norm).noise.name,
            inputs_with_grid_noise=on_grid,
            inputs_with_float_noise=len(rows) - on_grid,
            tv=float(significant(max(row.tv for row in rows), up=True)),
            moved=float(significant(max(row.moved for row in rows), 4, up=True)),
            samples_per_input=up(sum(row.samples for row in rows) / len(rows), 1),
            **header.model_dump(
                include={"levels", "snap", "sampler", "sampler_options", "randomized", "label_aware", "seed"},
            ),
            **header.rule.model_dump(),
        ),
        sigma=_sigma(run),
        model=Model(
            **header.model.model_dump(),
            **header.model_dump(include=set(Model.model_fields) - set(ModelIdentity.model_fields)),
        ),
        data=Data(**header.data.model_dump(), subset=header.subset, finished=len(rows), partial=run.partial),
        software=header.versions,
        results=_results(run, risk.false),
        limits=limits(run),
    )


def _short(risk: SetRisk) -> float:
    """How many are false on average at most, in two digits, rounded up; alpha is the decimal that it was given as."""
    exact = Decimal(repr(risk.alpha)) * risk.certifications
    same = math.isclose(float(exact), risk.expected, rel_tol=1e-12)
    return float(significant(exact if same else risk.expected, up=True))


def _check_answers(run: Run, store: Path | None, point: Points | None) -> None:
    """Rows that a memory answered rest on its file, not on counts of their own; where it is given, all are checked."""
    answered = sum(row.memory is not None and row.memory.kind == "answered" for row in run.rows)
    if store is None and not answered:
        return
    if store is None:
        raise RunError(f"{answered} rows of {run.path} were answered from a memory; give its file with --store.")
    found = verify_run(run.path, store=store, point=point)
    if not found.ok:
        raise RunError(f"{run.path} is not borne out by {store}: {found.findings[0]}.")
    if found.far_unchecked:
        raise RunError(f"{answered} rows of {run.path} lie in regions of a memory; give the data set with --data.")


def _sigma(run: Run) -> Sigma:
    header, sigma = run.header, run.sigma
    return Sigma(
        policy=header.sigma_policy,
        options=header.policy.model_dump(exclude_none=True),
        fixed=header.sigma,
        smallest=round(float(sigma.min()), 6),
        median=round(float(np.median(sigma)), 6),
        largest=round(float(sigma.max()), 6),
    )


def _results(run: Run, false: int) -> Results:
    average, found = None, certified(run)
    known = labelled([run])
    if known and not run.stops_at_radius:
        low, high = analysis.acr_interval(run)
        average = Interval(value=down(analysis.acr(run)), low=down(low), high=up(high))
    return Results(
        inputs=len(run),
        certified=int(found.sum()),
        abstained=len(run) - int(found.sum()),
        correct=int((run.correct & found).sum()) if known else None,
        certified_accuracy=_accuracies(run, false) if known else None,
        average_certified_radius=average,
        median_radius=down(float(np.median(run.radius))),
        largest_radius=down(float(run.radius.max())),
    )


def _accuracies(run: Run, false: int) -> list[AtRadius]:
    radii = radii_for([run])
    values = analysis.certified_accuracy(run, radii)
    bounds = analysis.certified_accuracy_interval(run, radii)
    return [
        AtRadius(
            radius=radius,
            value=share_down(value, len(run)),
            low=down(low),
            high=up(high),
            of_these_inputs=None
            if level_named(run.level).from_regions
            else share_down(max(0.0, value - false / len(run)), len(run)),
        )
        for radius, value, (low, high) in zip(radii, values.tolist(), bounds.tolist(), strict=True)
    ]


def card_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``certificate.json``, which the package ships as a file."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | Card.model_json_schema(mode="serialization")


def write_card(
    run: Run, out: Path, markdown: Path | None = None, *, store: Path | None = None, point: Points | None = None
) -> Card:
    """Write the card of a run, and the same as Markdown; RunError where a file cannot be written, or as ``card_of``."""
    card = card_of(run, store, point)
    files = {out: card.model_dump_json(indent=2) + "\n"}
    if markdown is not None:
        files[markdown] = render_markdown("card.md.j2", card=card)
    for path, text in files.items():
        try:
            write_durably(path, text)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}.") from error
    return card
