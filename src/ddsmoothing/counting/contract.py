"""What is asked of those who count, and who they may be. It runs no model and knows no bounds and no radii.

Requests of many inputs are packed into forward passes of one fixed shape, so memory does not grow with the number of
samples, and the counts do not depend on how the work is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.noise import Noise
from ddsmoothing.streams import rows_per_block

if TYPE_CHECKING:
    import torch

    from ddsmoothing.counting.engine import Engine
    from ddsmoothing.inputs import Batch

Progress = Callable[[int], None]


class BaseClassifier(Protocol):
    """Anything that maps inputs ``(B, ...)`` to logits ``(B, K)``; a ``torch.nn.Module`` is one."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """So many noisy samples of one input at one noise scale.

    Attributes:
        row: index into the batch.   sigma: standard deviation.   stream, first_block: which noise.   n: samples.
    """

    row: int
    sigma: float
    stream: int
    n: int
    first_block: int = 0


class Executor(Protocol):
    """Who runs forward passes: this process (``ClassCounter``), workers elsewhere, or a file of kept counts."""

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield ``(i, counts (K,))`` once for every request i, in any order, each as soon as it is known.

        The counts are a function of the input, the request and the seed, whoever draws them and however often.
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
