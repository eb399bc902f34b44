"""What a label is: the class of an input, a whole number from 0 on. It knows no data sets and no models.

There is no number for "no label": -1 stands for abstention wherever classes are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, ShapeError

WITHOUT = "for data without labels give none at all (y=None, labels=None, or --no-labels)"


def checked_labels(y: Any, size: int, num_classes: int | None = None) -> NDArray[np.int64]:
    """The labels of so many inputs, as int64; nothing is rounded, clipped or read from text.

    Args:
        y: ``(size,)`` whole numbers: an array, a tensor on any device, a column of a data frame, or a list.
        size: number of inputs.
        num_classes: K, where it is known; labels are below it.
    Raises:
        InputError: Labels are missing, not one for each input, or no classes.
    """
    try:
        found = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"labels are {type(y).__name__}, expected {size} whole numbers, one for each input.") from None
    if found.shape != (size,):
        one = f"; for one input give x[None] and [{found}]" if found.ndim == 0 and found.dtype.kind in "iu" else ""
        raise ShapeError(f"labels have shape {found.shape}, expected ({size},), one class for each input{one}.")
    if found.dtype.kind not in "iu":
        some = str(*found[:1])
        raise InputError(f"labels are {found.dtype}, such as {some!r}, expected whole numbers 0, 1, ..; {WITHOUT}.")
    lowest, highest = int(found.min(initial=0)), int(found.max(initial=0))
    if lowest < 0:
        raise InputError(f"a label is {lowest}, expected classes 0, 1, ..; {WITHOUT}.")
    if num_classes is not None and highest >= num_classes:
        raise InputError(
            f"label {highest} is out of range for a model with {num_classes} classes (0..{num_classes - 1}); "
            "this is another data set's model, or num_classes is wrong."
        )
    if highest >= 2**63:
        raise InputError(f"a label is {highest}, expected classes 0, 1, ..")
    return found.astype(np.int64)
