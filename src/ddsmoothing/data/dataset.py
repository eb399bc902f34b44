"""A data set: inputs in a fixed order, their labels, and what tells it from another.

It knows no files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.errors import DataError
from ddsmoothing.inputs import INTEGERS
from ddsmoothing.kernels.rounding import on_grid_values

FINGERPRINT_INPUTS: Final = 64
LEVELS: Final = {np.dtype(str(kind).removeprefix("torch.")): levels for kind, levels in INTEGERS.items()}


class MissingError(DataError):
    """The files of a data set are not where they should be."""


class Inputs(Protocol):
    """What a data set needs of its inputs: an array ``(B, ...)``, or images that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, ...)``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Inputs in a fixed order; a sample's index is its id.

    Attributes:
        name, split: where it came from.   x: ``(B, ...)``, uint8 or float32 in [0, 1].   y: ``(B,)`` int64, or None.
        prepared: what was done to the stored inputs before they were numbers ``(B, ...)``, if anything.
    """

    name: str
    split: str
    x: Inputs
    y: NDArray[np.int64] | None
    prepared: str = ""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs, float32 in [0, 1], and labels, int64 (-1 where there are none)."""
        x = torch.from_numpy(np.array(self.x[index]))
        if (levels := LEVELS.get(self.x.dtype)) is not None:
            x = on_grid_values(x, levels, torch.float32)
        y = np.full(len(self), -1) if self.y is None else self.y
        return x, torch.from_numpy(np.array(y[index]))

    @property
    def transform(self) -> str:
        """How stored numbers become inputs."""
        levels = LEVELS.get(self.x.dtype)
        return self.prepared + ("none" if levels is None else f"x/{levels}")

    def fingerprint(self) -> dict[str, str | int]:
        """What tells this data set from another: name, split, length, transform, SHA-256 of some inputs.

        They are the first, the last, and others at even distances between, in all at most 64.
        """
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_INPUTS)).astype(np.int64))
        some = np.ascontiguousarray(self.x[places])
        digest = hashlib.sha256(f"{some.dtype.str}{some.shape}".encode() + some.tobytes())
        return {
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "transform": self.transform,
            "sha256": digest.hexdigest(),
        }
