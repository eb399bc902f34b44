"""What a memory's file holds: what it belongs to, and its regions. It knows no files."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.memory.rules import NORMS, Point


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a memory belongs to; its certificates say nothing of anything else.

    Attributes:
        model: its identity, see ``models.model_identity``.   transform: how stored numbers become inputs.
        norm, dtype: of the certificates and the inputs.   precision: how the model is run, see ``run_mode``.
        shape: of one input.   num_classes: K.   vote: how noisy answers become an answer.
    """

    model: str
    transform: str
    norm: str
    dtype: str
    precision: str
    shape: tuple[int, ...]
    num_classes: int
    vote: str = "plurality"  # of files that say nothing of it

    def __post_init__(self) -> None:
        if self.norm not in NORMS or not self.shape or min(self.shape) < 1 or self.num_classes < 2:
            raise InputError(f"{self} cannot bind a memory: expected norm l1 or l2, a shape, and at least 2 classes.")

    @property
    def d(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Region:
    """One stored ball.

    Attributes:
        number: 1, 2, ..   label: its class.   radius: what is kept of the certified one.
        attempt: the certification it comes from.   grid: True where the point is an 8-bit image.
        sha256: of the point's bytes.   sketch: float32 ``(terms,)``.   hash: over all of it and the hash before.
    """

    number: int
    label: int
    radius: float
    certified: float
    sigma: float
    attempt: int
    grid: bool
    sha256: bytes
    sketch: NDArray[np.float32]
    hash: bytes

    def hash_after(self, before: bytes) -> bytes:
        """What ``hash`` must be after the region before it."""
        head = struct.pack(
            "<qqdddq?", self.number, self.label, self.radius, self.certified, self.sigma, self.attempt, self.grid
        )
        return hashlib.sha256(before + head + self.sha256 + self.sketch.astype("<f4").tobytes()).digest()


def point_bytes(point: Point) -> bytes:
    """A point as it is stored and hashed: 8-bit integers, or little-endian float64."""
    if point.ndim != 1 or not (point.dtype == np.uint8 or point.dtype.kind == "f"):
        raise ShapeError(
            f"got a point of type {point.dtype} and shape {point.shape}, expected a flat uint8 or float one."
        )
    return point.tobytes() if point.dtype == np.uint8 else point.astype("<f8").tobytes()


def run_mode(precision: str, channels_last: bool, compiled: bool) -> str:
    """Precision, memory format and compilation in one word, such as ``bf16+compiled``: another one rounds otherwise."""
    return "+".join([precision, *["channels_last"] * channels_last, *["compiled"] * compiled])
