"""The objective that the options name, with what it needs beside the batch. It knows no formula and no optimizer."""

from __future__ import annotations

import torch
from torch import nn

from ddsmoothing.counting.engine import no_grad_logits
from ddsmoothing.errors import ModelError
from ddsmoothing.training.baselines import Baseline, Own, Samples
from ddsmoothing.training.catrs import catrs
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.keyed import Purpose, binomial, keys, normal
from ddsmoothing.training.objectives import Loss, consistency, denoiser, gaussian, macer, scaled, smoothadv
from ddsmoothing.training.parts import without_denoiser


class Objective:
    """What is minimised.

    Args:
        model: the network in training.
        wrapped: the same, whose backward pass is that of all processes.
        baseline: smoothed predictions, for CAT-RS; soft labels, for a selector.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, wrapped: nn.Module, baseline: Baseline | None) -> None:
        self._config, self._model, self._wrapped, self._baseline = config, model, wrapped, baseline

    def __call__(self, samples: Samples) -> Loss:
        """The loss of a batch; each sample's noise is its own."""
        config, x, y, sigma = self._config, samples.x, samples.y, samples.sigma
        key = keys(samples.seed, Purpose.NOISE, samples.epoch, 0, samples.ids)
        noise = scaled(normal(key, config.copies, x.shape[1:]), sigma)
        if config.objective == "smoothadv":
            attack = config.smoothadv
            epsilon = attack.epsilon * min(1.0, (samples.epoch + 1) / max(1, attack.warmup))
            return smoothadv(
                self._wrapped, x, y, noise, sigma, attacked=self._model, epsilon=epsilon, steps=attack.steps
            )
        if config.objective == "macer":
            return macer(self._wrapped, x, y, noise, sigma, **config.macer.model_dump())
        if config.objective == "consistency":
            return consistency(self._wrapped, x, y, noise, sigma, **config.consistency.model_dump())
        if config.objective == "selector":
            assert self._baseline is not None
            labels = self._baseline.predict(samples, torch.arange(len(x)), x[:0])  # a file asks the network nothing
            weight = config.selector.weight
            return consistency(self._wrapped, x, y, noise, sigma, weight=weight, eta=0.0, targets=labels)
        if config.objective == "catrs":
            return self._catrs(samples, noise)
        if config.objective == "denoiser":
            return denoiser(self._wrapped, x, noise, sigma)
        return gaussian(self._wrapped, x, y, noise, sigma, targets=self._targets(x, sigma))

    def _catrs(self, samples: Samples, noise: torch.Tensor) -> Loss:
        asked, baseline = self._config.catrs, self._baseline
        assert baseline is not None

        def predict(rows: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
            found = baseline.predict(samples, rows, probs)
            if found.shape != (len(rows), probs.shape[1]):
                raise ModelError(
                    f"the smoothed predictions are of {found.shape[1]} classes, the network gives {probs.shape[1]}."
                )
            return found

        late = asked.double_from is not None and samples.epoch >= asked.double_from
        key = keys(samples.seed, Purpose.KEPT, samples.epoch, 0, samples.ids)
        loss = catrs(
            self._wrapped,
            samples.x,
            samples.y,
            noise,
            samples.sigma,
            attacked=self._model,
            draw=lambda share: binomial(key, noise.shape[1], share),
            predict=predict,
            weight=asked.weight,
            epsilon=asked.epsilon * (2.0 if late else 1.0),
            steps=asked.steps,
            by_prediction=asked.by_prediction,
        )
        if isinstance(baseline, Own) and loss.log_probs is not None and samples.weight > 0.0:
            baseline.remember(samples.ids, loss.log_probs.detach().exp())
        return loss

    def _targets(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor | None:
        """What the frozen classifier says of the clean inputs, where that is asked for."""
        if not self._config.soft_targets:
            return None
        return no_grad_logits(without_denoiser(self._model), x, sigma).float().softmax(1)
