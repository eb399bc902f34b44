"""How good a model is on the held-out samples, under the same noise in every epoch. It trains nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ddsmoothing.counting.engine import Engine, no_grad_logits
from ddsmoothing.training.batches import Batch, Batches
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.distributed import World
from ddsmoothing.training.keyed import Purpose, keys, normal
from ddsmoothing.training.objectives import scaled
from ddsmoothing.training.sigma_table import SigmaTable

SCALES: Final = 5  # sigmas at which a denoiser is looked at
NAMES: Final = ("validation_loss", "validation_accuracy", "validation_clean_accuracy")


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What validates, and on which noise.

    Attributes:
        table: sigmas of the samples; moved first where the options say so.   seed: of the noise.
    """

    config: TrainConfig
    seed: int
    batches: Batches
    table: SigmaTable
    world: World

    def of(self, model: nn.Module, epoch: int, cast: torch.autocast) -> tuple[dict[str, float | None], float | None]:
        """Numbers by name, and that by which epochs are compared, larger is better; None without held-out samples."""
        if len(self.batches.held_out) == 0:
            return dict.fromkeys(NAMES), None
        if self.config.objective == "denoiser":
            return self._of_denoiser(model, cast)
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        for batch in self.batches.to_validate():
            if batch.weight > 0.0:
                sums += self._counted(model, batch, epoch, cast)
        self.table.exchange(self.world)
        *found, count = self.world.total(sums).tolist()
        loss, noisy, clean = (value / count for value in found)
        return dict(zip(NAMES, (loss, noisy, clean), strict=True)), noisy

    def _counted(self, model: nn.Module, batch: Batch, epoch: int, cast: torch.autocast) -> torch.Tensor:
        """Sums over a batch: loss and right answers on noisy samples, right answers on clean ones, samples."""
        ids, x, y = batch[:3]
        asked = self.config.data_dependent
        if asked is not None and asked.steps_test > 0:
            self.table.move(model, x, ids, asked, asked.steps_test, (self.seed, Purpose.VALIDATION, epoch))
        sigma = self.table.values[ids]
        with cast:
            clean = no_grad_logits(model, x, self.table.low)  # one that takes sigma is told the least that it knows
            logits = no_grad_logits(model, x + self._noise(ids, x, sigma), sigma).float()
        right = (logits.argmax(1) == y).sum(), (clean.argmax(1) == y).sum()
        return torch.stack([cross_entropy(logits, y, reduction="sum"), *right, torch.tensor(len(y), device=y.device)])

    def _of_denoiser(self, model: nn.Module, cast: torch.autocast) -> tuple[dict[str, float | None], float]:
        """PSNR at sigmas across the range trained on, in decibels: ``-10 log10`` of the mean squared error."""
        sigma = self.config.sigma
        ends = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        scales = np.geomspace(*ends, SCALES if ends[0] < ends[1] else 1).tolist()
        errors = torch.zeros(len(scales) + 1, dtype=torch.float64, device=self.world.device)
        for batch in self.batches.to_validate():
            for i, scale in enumerate(scales if batch.weight > 0.0 else ()):
                told = torch.full((len(batch.x),), scale, device=batch.x.device)
                with cast, Engine(model).open() as (caller,):
                    found = caller.answer(batch.x + self._noise(batch.ids, batch.x, told), told)
                errors[i] += (found.float() - batch.x).square().flatten(1).mean(1).sum()
            errors[-1] += len(batch.x) if batch.weight > 0.0 else 0
        *sums, count = self.world.total(errors).tolist()
        psnr = [-10.0 * math.log10(max(total / count, 1e-30)) for total in sums]
        by_sigma = {f"validation_psnr_{scale:.3g}": value for scale, value in zip(scales, psnr, strict=True)}
        return {**dict.fromkeys(NAMES), **by_sigma}, sum(psnr) / len(psnr)

    def _noise(self, ids: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        noise = normal(keys(self.seed, Purpose.VALIDATION, 2**32, 0, ids), 1, x.shape[1:])
        return scaled(noise, sigma)[:, 0]
