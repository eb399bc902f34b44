"""Figures of certificates of held-out inputs: what a fit is judged by."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.stateless.files import Figures

MULTIPLES: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of sigma, at which certified accuracy is shown


def figures(
    y: NDArray[np.int64],
    prediction: NDArray[np.int64],
    radius: NDArray[np.float64],
    *,
    cap: float,
    radii: tuple[float, ...],
    num_classes: int,
    forwards: float,
) -> Figures:
    """Figures of certificates ``(B,)`` against true classes; radii of ``certified`` ascend from 0."""
    right = prediction == y
    sizes = np.maximum(np.bincount(y, minlength=num_classes), 1)

    def by_class(hit: NDArray[np.bool_]) -> tuple[float, ...]:
        return tuple((np.bincount(y[hit], minlength=num_classes) / sizes).tolist())

    answered = np.bincount(prediction[prediction >= 0], minlength=num_classes) / len(y)
    return Figures(
        acr=float(np.where(right, np.minimum(radius, cap), 0.0).mean()),
        accuracy=float(right.mean()),
        radii=radii,
        certified=tuple(float((right & (radius > r)).mean()) for r in radii),
        abstained=float((prediction < 0).mean()),
        forwards=forwards,
        accuracy_by_class=by_class(right),
        certified_by_class=by_class(right & (radius > radii[1])),
        answered_by_class=tuple(answered.tolist()),
    )
