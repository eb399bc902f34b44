"""Figures of certificates of held-out inputs: what a fit is judged by."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.stateless.files import Figures

MULTIPLES: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the noise, at which certified accuracy is shown


class Certificates(Protocol):
    """Of B inputs, by one rule or by a table."""

    @property
    def prediction(self) -> NDArray[np.int64]: ...

    @property
    def radius(self) -> NDArray[np.float64]: ...

    @property
    def samples(self) -> NDArray[np.int64]: ...


def figures(y: NDArray[np.int64], found: Certificates, *, cap: float, unit: float, num_classes: int) -> Figures:
    """Figures of certificates ``(B,)`` against true classes.

    Args:
        cap: on radii, for their mean.   unit: of the radii that are shown: sigma, or lambda for L1.
    """
    prediction, radius = found.prediction, found.radius
    radii = tuple(multiple * unit for multiple in MULTIPLES)
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
        forwards=float(found.samples.mean()),
        accuracy_by_class=by_class(right),
        certified_by_class=by_class(right & (radius > radii[1])),
        answered_by_class=tuple(answered.tolist()),
    )
