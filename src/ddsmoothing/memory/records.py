"""What a memory's file holds: what it belongs to, its attempts and its regions, in one chain. It knows no files.

Every attempt and every region carries a hash over itself and the hash before it, in the order in which they came; the
first follows on what the memory belongs to. The last hash, the head, is therefore one over all of it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.memory.rules import NORMS, Point

NONCE: Final = 16  # bytes
LARGEST: Final = 2**26  # numbers in one input


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a memory belongs to; its certificates say nothing of anything else.

    Attributes:
        model: its identity, see ``models.model_identity``.   transform: how stored numbers become inputs.
        norm, dtype: of the certificates and the inputs.   precision: how the model is run, see ``run_mode``.
        shape: of one input.   num_classes: K.   vote: how noisy answers become an answer.
        behaviour: what the base classifier answers to keyed copies of drawn patterns, see ``counting.fingerprint``;
            None where the memory was made from a run, without a model.
    """

    model: str
    transform: str
    norm: str
    dtype: str
    precision: str
    shape: tuple[int, ...]
    num_classes: int
    vote: str
    behaviour: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS or not self.shape or min(self.shape) < 1 or self.num_classes < 2:
            raise InputError(f"{self} cannot bind a memory: expected norm l1 or l2, a shape, and at least 2 classes.")
        if self.d > LARGEST:
            raise InputError(f"an input of {self.d} numbers is too large for a memory, expected at most {LARGEST}.")

    @property
    def d(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One certification begun, whatever became of it.

    Attributes:
        number: 1, 2, ..   nonce: NONCE bytes from the operating system, so that a copy of the file, or an older one
            that was put back, draws other noise for the same number.
        started: when, UTC.   hash: over all of it and the hash before.
    """

    number: int
    nonce: bytes
    started: str
    hash: bytes

    @property
    def name(self) -> str:
        """For messages."""
        return f"attempt {self.number}"

    @property
    def place(self) -> tuple[int, int]:
        """Its order among attempts and regions."""
        return self.number, 0

    def hash_after(self, before: bytes) -> bytes:
        """What ``hash`` must be after the record before it."""
        return hashlib.sha256(b"%sA%d %s %s" % (before, self.number, self.nonce, self.started.encode())).digest()

    def follows(self, head: Head) -> bool:
        """Is it the next record after this head?"""
        return self.number == head.attempts + 1 and self.hash == self.hash_after(head.hash)

    def noise_id(self, seed: int) -> int:
        """What keys its noise beside the memory's seed: 64 bits of SHA-256 over seed, number and nonce."""
        digest = hashlib.sha256(struct.pack("<QQ", seed, self.number) + self.nonce).digest()
        return int.from_bytes(digest[:8], "little")


@dataclass(frozen=True, kw_only=True)
class Region:
    """One stored ball.

    Attributes:
        number: 1, 2, ..   label: its class.   radius: what is kept of the certified one.
        attempt: the certification it comes from.   after: the last attempt begun before it was stored.
        grid: True where the point is an 8-bit image.   evidence: JSON of the counts that made it, or empty.
        sha256: of the point's bytes.   sketch: float32 ``(terms,)``.   hash: over all of it and the hash before.
    """

    number: int
    label: int
    radius: float
    certified: float
    sigma: float
    attempt: int
    after: int
    grid: bool
    evidence: str
    sha256: bytes
    sketch: NDArray[np.float32]
    hash: bytes

    @property
    def name(self) -> str:
        """For messages."""
        return f"region {self.number}"

    @property
    def place(self) -> tuple[int, int]:
        """Its order among attempts and regions."""
        return self.after, self.number

    def hash_after(self, before: bytes) -> bytes:
        """What ``hash`` must be after the record before it."""
        numbers = (self.number, self.label, self.radius, self.certified, self.sigma, self.attempt, self.after)
        digest = hashlib.sha256(before + b"R" + struct.pack("<qqdddqq?", *numbers, self.grid))
        digest.update(hashlib.sha256(self.evidence.encode()).digest() + self.sha256)
        digest.update(self.sketch.astype("<f4").tobytes())
        return digest.digest()

    def follows(self, head: Head) -> bool:
        """Is it the next record after this head?"""
        right = self.number == head.regions + 1 and self.attempt <= self.after == head.attempts
        return right and self.hash == self.hash_after(head.hash)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a chain ends: how many attempts and regions are in it, the last hash and the last record's name."""

    attempts: int
    regions: int
    hash: bytes
    name: str

    @property
    def broken(self) -> str:
        """What is wrong with a record that does not follow."""
        return f"it does not follow from {self.name}; either was changed, or what came between"

    def past(self, record: Attempt | Region) -> Head:
        """The head after one more record."""
        attempts, regions = self.attempts, self.regions
        if isinstance(record, Attempt):
            attempts = record.number
        else:
            regions = record.number
        return Head(attempts=attempts, regions=regions, hash=record.hash, name=record.name)


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
