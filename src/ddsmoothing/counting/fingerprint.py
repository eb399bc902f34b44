"""What a model does, in 64 numbers: its classes on keyed noisy copies. A hash sees what a model is, this sees answers.

Bare callables have no hash, and a hash does not see what a model reads elsewhere. The noise is that of no certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.counting.contract import Request
from ddsmoothing.errors import ModelError
from ddsmoothing.noise import LARGEST_STEPS
from ddsmoothing.streams import Stream

if TYPE_CHECKING:
    import torch

    from ddsmoothing.inputs import Batch

COPIES: Final = 64
INPUTS: Final = 8  # at most
SIGMAS: Final = (0.25, 0.5, 1.0, 2.0)  # in turn: small noise that a model knows, large noise that tells models apart
SEED: Final = 0xBE4A_0100_0000_0001  # of its noise alone
ALLOWED: Final = 2  # copies that rounding may give another class: another device, other libraries


class Smoothed(Protocol):
    """What is needed of a smoothed classifier."""

    def prepare(self, x: torch.Tensor, ids: Sequence[int] | None = None) -> Batch: ...

    def count(self, batch: Batch, requests: Sequence[Request], seed: int) -> Sequence[NDArray[np.int64]]: ...


def behaviour(smoothed: Smoothed, x: torch.Tensor) -> tuple[int, ...]:
    """The base classifier's classes on COPIES noisy copies of the first inputs, a function of model and inputs alone.

    Args:
        smoothed: a smoothed classifier that keeps no counts.
        x: ``(B, ...)``; the first INPUTS are used, always the same for one run or memory.
    Raises: ModelError.
    """
    batch = smoothed.prepare(x[:INPUTS], range(min(INPUTS, len(x))))
    fit = min(1.0, LARGEST_STEPS / (2 * max(SIGMAS) * batch.levels))  # fine grids hold less noise; 2: of any law
    requests = [
        Request(
            row=i % len(batch),
            sigma=fit * SIGMAS[i // len(batch) % len(SIGMAS)],
            stream=Stream.PREDICT,
            n=1,
            first_block=i // len(batch),
        )
        for i in range(COPIES)
    ]
    return tuple(int(counts.argmax()) for counts in smoothed.count(batch, requests, SEED))


def differences(before: Sequence[int], now: Sequence[int]) -> int:
    """How many copies have another class; all of them where there is another number of copies."""
    if len(before) != len(now):
        return max(len(before), len(now))
    return sum(a != b for a, b in zip(before, now, strict=True))


def check_behaviour(before: Sequence[int], now: Sequence[int], what: str) -> None:
    """Refuse a model that answers otherwise than before.

    Args:
        before, now: as ``behaviour`` gives them.   what: what was made with the model, as ``the run in out``.
    Raises: ModelError naming the count, where more than ALLOWED copies have another class.
    """
    if (count := differences(before, now)) > ALLOWED:
        raise ModelError(
            f"this is not the model of {what}: {count} of {len(before)} noisy copies have another class (at most "
            f"{ALLOWED} may, by rounding). Give the model that it was made with."
        )
