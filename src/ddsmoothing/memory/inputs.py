"""A finished run beside its inputs: what a memory needs of it, checked against the data set. It stores nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims import POINTWISE
from ddsmoothing.claims.results import evidence_text
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.memory.classifier import point_of, prepared
from ddsmoothing.memory.index import Index, sketch_for
from ddsmoothing.memory.records import Binding, run_mode
from ddsmoothing.memory.regions import Found
from ddsmoothing.memory.rules import Cut, Pair, Point, distance, order_free
from ddsmoothing.models import identity_text
from ddsmoothing.noise import LEVELS
from ddsmoothing.runs import Header, ResultRow, Run

READ = 256  # inputs made ready at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The points of a run's rows, in their order.

    Attributes:
        binding: what a memory of this run belongs to.   points: flat, uint8 or float64.   sketches: ``(B, terms)``.
    """

    binding: Binding
    points: tuple[Point, ...]
    sketches: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.points)


def binding_of_run(run: Run, data: Dataset) -> Binding:
    """What a memory of a run belongs to.

    Raises: as ``inputs_of``; RunError where the run's model has neither a hash nor an id.
    """
    check_run(run)
    header = run.header
    if data.fingerprint() != header.data.model_dump():
        raise InputError(f"this is not the data set of {run.path}: expected {header.data.model_dump()}.")
    if header.model.sha256 is None and not header.model.model_id:
        raise RunError(f"the run's model {header.model.name!r} has no hash and no id; certify it with --model-id.")
    return Binding(
        model=identity_text(header.model.sha256, header.model.model_id),
        transform=header.data.transform,
        norm=header.norm,
        dtype=header.dtype,
        precision=run_mode(header.precision, header.channels_last, header.compiled),
        shape=tuple(data.x.shape[1:]),
        num_classes=header.num_classes,
        vote=header.vote,
    )


def inputs_of(run: Run, data: Dataset) -> Inputs:
    """The inputs of a run, each checked against the hash in its row.

    Raises: RunError for a run that a memory cannot take: of another level, partial, or label-aware (regions of wrong
        classes would be missing); InputError for another data set than the run's.
    """
    binding = binding_of_run(run, data)
    points: list[Point] = []
    for start in range(0, len(run), READ):
        rows = run.rows[start : start + READ]
        batch = prepared(data[[row.id for row in rows]][0], binding)
        for i, row in enumerate(rows):
            if batch.sha256[i] != row.input_sha256:
                raise InputError(f"input {row.id} of the data set is not the one that {run.path} certified.")
            points.append(point_of(batch, i))
    return Inputs(binding=binding, points=tuple(points), sketches=sketches_of(points, binding))


def check_run(run: Run) -> None:
    """Raise RunError unless a memory can take the run."""
    if run.header.stateless is not None:
        raise RunError(
            f"{run.path} is of level {run.level}, which needs no memory: its one classifier already answers every "
            "query inside a radius with that class."
        )
    if run.level != POINTWISE.name:
        raise RunError(f"{run.path} is of level {run.level}; a memory takes runs of level {POINTWISE.name}.")
    if run.header.snap or run.header.levels != LEVELS:
        raise RunError(
            f"{run.path} moved inputs to a grid (--snap) or used another than the 8-bit one (--levels); a memory takes "
            "inputs as they are."
        )
    if run.header.rule.offsets is not None:
        raise RunError(f"{run.path} has class offsets, which a memory's binding does not hold; certify without them.")
    if run.header.label_aware:
        raise RunError(
            f"{run.path} is label-aware: certificates of wrong classes, whose regions a memory must know, are missing. "
            "Certify without labels' help."
        )
    if run.partial:
        raise RunError(f"{run.path} is partial ({len(run)} of {run.header.subset.size} inputs); finish it first.")


def sketches_of(points: list[Point], binding: Binding) -> NDArray[np.float32]:
    """Sketches ``(B, terms)``, some at a time."""
    sketch = sketch_for(binding.shape)
    found = np.empty((len(points), sketch.terms), dtype=np.float32)
    for kind in ("u", "f"):
        rows = [i for i, point in enumerate(points) if point.dtype.kind == kind]
        for start in range(0, len(rows), READ):
            part = rows[start : start + READ]
            found[part] = sketch.of(np.stack([points[i] for i in part]))
    return found


def found_at(header: Header, row: ResultRow, alpha: float) -> Found:
    """The certificate that a row's counts allow at the memory's alpha; what the row says of itself is not believed."""
    claim = header.claim(row, alpha)
    drawn = [one.compact() for one in row.measurements]
    return Found(
        prediction=claim.prediction,
        radius=claim.radius,
        sigma=row.sigma,
        evidence=evidence_text(header.judge, header.alpha, row.moved, drawn),
    )


def touching(inputs: Inputs, found: list[Found]) -> list[Pair]:
    """Every pair of inputs whose certified balls meet, or one of which lies in the other's, once; exact."""
    index = Index(inputs.sketches.shape[1], inputs.binding.d)
    radii = np.array([one.radius for one in found])
    index.extend(np.array([one.prediction for one in found]), radii, inputs.sketches)
    pairs = []
    for i, point in enumerate(inputs.points):
        for j in index.near(inputs.sketches[i], float(radii[i])).tolist():
            together = radii[i] + radii[j]
            if j <= i or together <= 0.0:
                continue
            far = distance(inputs.binding.norm, point, inputs.points[j])
            if far < together * (1.0 + 2.0**-20) + 2.0**-50 * inputs.binding.d:
                pairs.append(Pair(i=i, j=j, far=far))
    return pairs


def order_free_cuts(inputs: Inputs, found: list[Found]) -> list[Cut]:
    """What the order-free rule leaves of a run's certificates."""
    classes = np.array([one.prediction for one in found])
    radii = np.array([one.radius for one in found])
    return order_free(inputs.binding.norm, inputs.binding.d, classes, radii, touching(inputs, found))
