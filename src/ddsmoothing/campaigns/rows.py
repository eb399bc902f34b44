"""A certification as rows of a run folder, and the names of their classes."""

from __future__ import annotations

from ddsmoothing.claims import Certification
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.data import Dataset
from ddsmoothing.files import file_name
from ddsmoothing.models import spec_of
from ddsmoothing.runs.schema import ResultRow, SigmaChoice
from ddsmoothing.sigma.search import SigmaSearch
from ddsmoothing.stateless import StatelessCertification


def rows_of(
    result: Certification | StatelessCertification, labels: list[int] | None, found: SigmaSearch | None = None
) -> list[ResultRow]:
    """One row for each input of a certification; labels None where there are none, found where sigma was searched."""
    share = (result.seconds + (0.0 if found is None else found.seconds)) / len(result)
    return [
        ResultRow(
            id=result.ids[i],
            input_sha256=result.input_sha256[i],
            label=None if labels is None else labels[i],
            prediction=int(result.prediction[i]),
            correct=None if labels is None else bool(result.prediction[i] == labels[i]),
            reason=result.reason[i],
            radius=float(result.radius[i]),
            p_lower=float(result.p_lower[i]),
            p_upper=float(result.p_upper[i]),
            sigma=float(result.sigma[i]),
            lambda_=float(result.scale[i]) if result.norm == "l1" else None,
            noise=result.noise[i],
            moved=float(result.moved[i]),
            choice=None if found is None else choice_of(found, i),
            measurements=result.measurements[i],
            samples=int(result.samples[i]),
            seconds=share,
        )
        for i in range(len(result))
    ]


def choice_of(found: SigmaSearch, i: int) -> SigmaChoice:
    """How a search came to one input's sigma."""
    return SigmaChoice(
        anchor=int(found.anchor[i]),
        score=float(found.score[i]),
        at_border=bool(found.at_border[i]),
        samples=found.forwards,
    )


def class_names(smoothed: SmoothedClassifier, data: Dataset) -> dict[str, list[str]]:
    """Names of the classes, where the data set or else the model says them in words."""
    spec = spec_of(smoothed.model)
    names = data.classes if data.classes is not None else () if spec is None else spec.classes
    return {"classes": list(map(file_name, names))} if any(not name.isdigit() for name in names) else {}
