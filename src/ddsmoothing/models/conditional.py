"""Networks that are told sigma: any architecture, with its logarithm as one more input channel or as scale and shift.

It knows no files and no training. What is added starts at zero: at first such a network is the one that it was made of,
but for the normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import nn

from ddsmoothing.errors import InputError, ModelError, unknown
from ddsmoothing.models.zoo import Normalize

CONDITIONS: Final = ("channel", "film")
_LOG_SIGMA: ContextVar[torch.Tensor] = ContextVar("log_sigma")  # of the pass that this thread is in


class Conditional(nn.Sequential):
    """A normalised network called ``model(x, sigma)``; sigma ``(B,)`` float32, standard deviation, pixel units.

    Noisy inputs have variance ``std^2 + sigma^2``, so they are normalised by ``(x - mean) / sqrt(std^2 + sigma^2)``.

    Args:
        model: a normalising layer and what follows; its parts are taken over and keep their names.
        condition: ``channel``: the first convolution gets one more input channel, constant log sigma; ``film``: the
            outputs of all batch normalisations, or of all convolutions where there are none, are scaled and shifted by
            numbers that depend on log sigma.
    Raises: ModelError where the network has no such part.
    """

    takes_sigma = True

    def __init__(self, model: nn.Sequential, condition: str) -> None:
        super().__init__(*model)
        if condition not in CONDITIONS:
            raise InputError(unknown("condition", condition, CONDITIONS))
        self.condition = condition
        if condition == "channel":
            _widen(self)
        else:
            _modulate(self)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Logits ``(B, K)`` of inputs ``(B, C, H, W)``."""
        first, *layers = self
        assert isinstance(first, Normalize)
        sigma = sigma.float().reshape(-1, 1, 1, 1)
        log_sigma = sigma.log()
        x = (x - first.mean) / (first.std.float().square() + sigma.square()).sqrt().to(x.dtype)
        if self.condition == "channel":
            x = torch.cat([x, log_sigma.to(x.dtype).expand(-1, 1, *x.shape[2:])], dim=1)
        with _told(log_sigma):
            for layer in layers:
                x = layer(x)
        return x


@contextmanager
def _told(log_sigma: torch.Tensor) -> Iterator[None]:
    """While inside, the parts of the network that ask are told log sigma ``(B, 1, 1, 1)``; each thread its own."""
    token = _LOG_SIGMA.set(log_sigma)
    try:
        yield
    finally:
        _LOG_SIGMA.reset(token)


class Film(nn.Module):
    """``h (1 + a) + b`` for each channel; a and b are polynomials of degree two in log sigma, without constant term."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2 * channels))

    def forward(self, h: torch.Tensor, log_sigma: torch.Tensor) -> torch.Tensor:
        log_sigma = log_sigma.reshape(-1, 1)
        linear, square = self.weight.float()
        a, b = (linear * log_sigma + square * log_sigma.square()).to(h.dtype)[:, :, None, None].chunk(2, dim=1)
        modulated: torch.Tensor = h * (1.0 + a) + b
        return modulated


def _modulated(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook: what a layer with a Film gave, modulated."""
    film: Film = module.film  # type: ignore[assignment]
    return film(output, _LOG_SIGMA.get())  # type: ignore[no-any-return]


def _modulate(network: nn.Module) -> None:
    """Give a Film to every batch normalisation, or to every convolution where there are none."""
    layers: list[tuple[nn.Module, int]] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            layers.append((module, module.num_features))
    if not layers:
        layers = [(module, module.out_channels) for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        raise ModelError("the network has neither batch normalisations nor convolutions, which film would modulate.")
    for layer, channels in layers:
        layer.add_module("film", Film(channels))
        layer.register_forward_hook(_modulated)


def _widen(model: nn.Sequential) -> None:
    """Give the first convolution one more input channel, whose weights are zero."""
    first = model[0]
    assert isinstance(first, Normalize)
    channels = len(first.mean)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels and module.groups == 1:
            old = module.weight.detach()
            module.in_channels += 1
            module.weight = nn.Parameter(torch.cat([old, torch.zeros_like(old[:, :1])], dim=1))
            return
    raise ModelError(f"the network has no convolution of {channels} input channels to widen; take --condition film.")
