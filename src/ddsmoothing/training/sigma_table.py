"""One sigma for each sample of the training split: what its noise is scaled by, moved by the paper's ascent.

It knows the base classifier only through the ascent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddsmoothing.certificate import L2Certificate
from ddsmoothing.sigma.ascent import ASCENTS, Ascent, ascend_theta
from ddsmoothing.training.config import DataDependent
from ddsmoothing.training.keyed import Purpose, keys, normal
from ddsmoothing.training.sample_table import SampleTable


class SigmaTable(SampleTable):
    """Sigmas ``(N,)`` by sample index.

    Attributes:
        low, high: what they cannot leave.
    """

    def __init__(self, values: torch.Tensor, low: float, high: float) -> None:
        super().__init__(values)
        self.low, self.high = low, high

    def move(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        ids: torch.Tensor,
        asked: DataDependent,
        steps: int,
        words: tuple[int, Purpose, int],
    ) -> None:
        """Move the sigmas of the samples ``ids`` ``(B,)`` up the gradient of their estimated radius.

        The model is used in eval mode and left as it came; each sample's noise is its own.

        Args:
            words: seed, purpose and epoch of the noise.

        References: Alfarra et al. 2022, arXiv:2012.04351, Algorithm 1.
        """
        paper = ASCENTS["paper"]
        moved = ascend_theta(
            model,
            x,
            self.values[ids],
            certificate=_Keyed(words, ids, asked.samples),
            ascent=Ascent(step=asked.step, iterations=steps, samples=asked.samples, clamp=paper.clamp),
            low=self.low,
            high=self.high,
            max_rows=len(x) * asked.samples,
        )
        self.put(ids, moved)


class _Keyed(L2Certificate):
    """The L2 certificate with the noise of these samples: each call is the next step of the ascent."""

    def __init__(self, words: tuple[int, Purpose, int], ids: torch.Tensor, samples: int) -> None:
        super().__init__()
        self._words, self._ids, self._samples, self._step = words, ids, samples, 0

    def sample_noise(
        self, batch: torch.Tensor, repeated_theta: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        noise = normal(keys(*self._words, self._step, self._ids), self._samples, batch.shape[1:])
        self._step += 1
        return noise.flatten(0, 1).to(batch.dtype) * repeated_theta  # interleaved, as copies and thetas are
