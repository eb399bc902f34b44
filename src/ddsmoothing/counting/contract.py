"""What is asked of those who count, and who they may be. It runs no model and knows no bounds and no radii.

Requests of many inputs are packed into forward passes of one fixed shape, so memory does not grow with the number of
samples, and the counts do not depend on how the work is cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims.measurement import DUELS as DUELS
from ddsmoothing.claims.measurement import VOTES as VOTES
from ddsmoothing.claims.measurement import WINS as WINS
from ddsmoothing.errors import InputError, unknown
from ddsmoothing.noise import Noise
from ddsmoothing.streams import rows_per_block

if TYPE_CHECKING:
    import torch

    from ddsmoothing.counting.engine import Engine
    from ddsmoothing.inputs import Batch

Progress = Callable[[int], None]
TALLIES: Final = (VOTES, WINS, DUELS)


class BaseClassifier(Protocol):
    """Anything that maps inputs ``(B, ...)`` to logits ``(B, K)``; a ``torch.nn.Module`` is one."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """So many noisy samples of one input at one noise scale, and what is counted on them; K classes.

    Attributes:
        row: index into the batch.   sigma: standard deviation.   stream, first_block: which noise.   n: samples.
        tally: ``votes`` ``(K,)``, how many samples are of each class; ``wins`` ``(2, K)``, the votes, and on how many
            samples the anchor beats each class (its own entry is n); ``duels`` ``(K, K)``, on how many a beats b, with
            the votes on the diagonal. All are sums over samples.
        anchor: the class whose wins are counted, else None.
    """

    row: int
    sigma: float
    stream: int
    n: int
    first_block: int = 0
    tally: str = VOTES
    anchor: int | None = None

    def __post_init__(self) -> None:
        if self.tally not in TALLIES:
            raise InputError(unknown("tally", self.tally, TALLIES))
        if (self.anchor is None) == (self.tally == WINS):
            raise InputError(f"{self.tally} with the anchor {self.anchor}, expected one for wins and none for others.")


class Executor(Protocol):
    """Who runs forward passes: this process (``ClassCounter``), workers elsewhere, or a file of kept counts."""

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield ``(i, counts)`` once for every request i, in any order, each as soon as it is known; see ``Request``.

        The counts are a function of the input, the request and the seed, whoever draws them and however often.
        """


class Counter(ABC):
    """An executor of this process, which knows all counts when its last forward pass is done."""

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """All counts at once; see ``Executor``."""
        yield from enumerate(self.count(batch, requests, seed, progress))

    @abstractmethod
    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> list[NDArray[np.int64]]:
        """What each request asks to be counted; see ``Request``.

        Args:
            progress: called with the number of samples done since its last call.
        Raises:
            ModelError: the model's answer is not ``(B, K)`` or not finite.
        """


class Workers(Protocol):
    """Processes that run forward passes in place of this one.

    Attributes:
        listener: told ``worker lost`` and ``retry`` with details, where it is set.   size: how many workers there are.
        lost, retries: how often a worker was lost and a task sent again.
    """

    listener: Callable[..., None] | None
    size: int
    lost: int
    retries: int

    def executor(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> Executor:
        """The executor of one model; arguments as for ``ClassCounter``."""


def tally_shape(tally: str, num_classes: int) -> tuple[int, ...]:
    """The shape of what a request gets."""
    return {VOTES: (num_classes,), WINS: (2, num_classes), DUELS: (num_classes, num_classes)}[tally]


def tally_fault(counts: NDArray[np.int64], request: Request, num_classes: int) -> str | None:
    """What is impossible in counts that were kept, None where nothing is."""
    if counts.shape != tally_shape(request.tally, num_classes):
        return f"counts of shape {counts.shape}, expected {tally_shape(request.tally, num_classes)}"
    n, anchor, others = request.n, request.anchor, ~np.eye(num_classes, dtype=bool)
    if counts.min() < 0 or counts.max() > n:  # so that no sum below leaves 64 bits
        return f"counts from {counts.min()} to {counts.max()}, expected 0 to {n}"
    votes = counts if request.tally == VOTES else counts[0] if request.tally == WINS else counts.diagonal()
    if sum(votes.tolist()) != n:
        return f"votes with the sum {sum(votes.tolist())}, expected {n}"
    if anchor is not None:
        if not 0 <= anchor < num_classes:
            return f"the anchor {anchor}, expected one of {num_classes} classes"
        wins = counts[1]
        if wins[anchor] != n or (wins < votes[anchor]).any() or (wins > n - votes)[others[anchor]].any():
            return "wins that do not fit the votes"
    if request.tally == DUELS and ((counts < votes[:, None]).any() or (n - counts != counts.T)[others].any()):
        return "duels that do not add up"
    return None


def cut_request(d: int, request: Request, samples: int) -> tuple[Request, Request | None]:
    """A request cut at a noise block after at most so many samples, but at least one block, and what is left of it.

    Its counts are the sum of both parts' counts, bit for bit.
    """
    rows = rows_per_block(d)
    blocks = max(1, samples // rows)
    if blocks * rows >= request.n:
        return request, None
    rest = replace(request, first_block=request.first_block + blocks, n=request.n - blocks * rows)
    return replace(request, n=blocks * rows), rest
