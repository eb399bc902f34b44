"""Something for each sample of the training split, by its index, which several processes change and then exchange."""

from __future__ import annotations

import torch

from ddsmoothing.training.distributed import World


class SampleTable:
    """Values by sample index.

    Attributes:
        values: ``(N, ...)`` float32.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.clone()
        self._moved = torch.zeros(len(values), dtype=torch.bool, device=values.device)

    def put(self, ids: torch.Tensor, values: torch.Tensor) -> None:
        """New values ``(B, ...)`` of the samples ``ids`` ``(B,)``."""
        self.values[ids] = values.to(self.values.dtype)
        self._moved[ids] = True

    def exchange(self, world: World) -> None:
        """Give every process what others put; no sample is moved by two of them between two calls."""
        moved = world.total(self._moved.to(torch.int32)) > 0
        wide = (slice(None), *[None] * (self.values.ndim - 1))
        news = world.total(torch.where(self._moved[wide], self.values, 0.0))
        self.values = torch.where(moved[wide], news, self.values)
        self._moved.zero_()
