"""Parts of a model that no gradient moves: frozen ones, statistics of batch normalisation. It knows no objective."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddsmoothing.errors import InputError


def part_of(model: nn.Module, name: str) -> nn.Module:
    """A part by name; InputError where the model has none of that name."""
    part = getattr(model, name, None)
    if not isinstance(part, nn.Module):
        raise InputError(
            f"--freeze {name} needs a model with the parts denoiser and classifier, such as a DenoisedClassifier; got "
            f"{type(model).__name__}."
        )
    return part


class _Same(nn.Module):
    """A denoiser that leaves images as they are."""

    takes_sigma = True

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return y


def without_denoiser(model: nn.Module) -> nn.Module:
    """The same model, with the same classifier and all that it does between, on images that need no denoising."""
    plain = copy.copy(model)
    plain._modules = {**model._modules, "denoiser": _Same()}
    return plain


@contextmanager
def frozen(model: nn.Module, name: str | None) -> Iterator[None]:
    """While inside, the parameters of this part want no gradients."""
    parameters = [] if name is None else list(part_of(model, name).parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


def normalisations(model: nn.Module, but: str | None) -> list[_BatchNorm]:
    """The batch normalisations that keep statistics, without those of the frozen part."""
    left_out = set() if but is None else set(part_of(model, but).modules())
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m not in left_out]


@torch.no_grad()
def recompute(model: nn.Module, layers: list[_BatchNorm], passes: Iterable[object]) -> None:
    """Take the layers' statistics anew: the mean over passes through the model, which consuming ``passes`` makes.

    Everything else is in eval mode while they are made; modes and momenta are as before afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean of all batches
        layer.train()
    try:
        for _ in passes:
            pass
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
