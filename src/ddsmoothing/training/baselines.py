"""Whose smoothed predictions training takes: those in a file, a teacher's that is asked on the way, the network's own.

It knows no objective. Each answers for rows of a batch, and is told what the network in training says of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.counting.engine import no_grad_logits
from ddsmoothing.errors import ModelError
from ddsmoothing.training.keyed import Purpose, keys, normal
from ddsmoothing.training.objectives import scaled
from ddsmoothing.training.sample_table import SampleTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """A batch where it is trained on.

    Attributes:
        ids: ``(B,)``.   x: ``(B, ...)``.   y: ``(B,)``.   sigma: ``(B,)``.   seed, epoch: of what is drawn for it.
        weight: of its mean loss in the mean over all processes; 0: it stands in for an empty batch.
    """

    ids: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    sigma: torch.Tensor
    seed: int
    epoch: int
    weight: float


class Baseline(Protocol):
    """Smoothed predictions of the samples of a batch."""

    def predict(self, samples: Samples, rows: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """``(n, K)`` for these rows ``(n,)``; probs ``(B, K)``: the mean softmax of the network in training."""


class FromFile:
    """Predictions made before."""

    def __init__(self, votes: torch.Tensor) -> None:
        self._votes = votes

    def predict(self, samples: Samples, rows: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        votes = self._votes[samples.ids[rows].cpu()].to(samples.x.device, torch.float32)
        return votes / votes.sum(1, keepdim=True)


class Teacher:
    """A baseline that sees noisy copies of each input at that input's own sigma, drawn anew in every epoch."""

    def __init__(self, model: BaseClassifier, copies: int) -> None:
        self._model, self._copies = model, copies

    def predict(self, samples: Samples, rows: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        x, sigma = samples.x[rows], samples.sigma[rows]
        key = keys(samples.seed, Purpose.TEACHER, samples.epoch, 0, samples.ids[rows])
        noise = scaled(normal(key, self._copies, x.shape[1:]), sigma)
        logits = no_grad_logits(self._model, (x[:, None] + noise).flatten(0, 1), sigma.repeat_interleave(self._copies))
        return logits.float().softmax(1).reshape(len(x), self._copies, -1).mean(1)


class Own:
    """The network's own votes of all epochs, the older ones weighing less.

    Attributes:
        table: ``(N, K)``, zero where a sample was not seen yet.
    """

    def __init__(self, size: int, classes: int, decay: float, device: torch.device) -> None:
        self.table, self._decay = SampleTable(torch.zeros(size, classes, device=device)), decay

    def predict(self, samples: Samples, rows: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        return self._next(samples.ids[rows], probs[rows])

    def remember(self, ids: torch.Tensor, probs: torch.Tensor) -> None:
        """What the network said ``(B, K)`` of these samples in this epoch."""
        self.table.put(ids, self._next(ids, probs))

    def _next(self, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        before = self.table.values[ids]
        if before.shape != probs.shape:
            raise ModelError(f"the network gives {probs.shape[1]} classes, but num_classes is {before.shape[1]}.")
        seen = before.sum(1, keepdim=True) > 0
        return torch.where(seen, self._decay * before + (1.0 - self._decay) * probs.float(), probs.float())
