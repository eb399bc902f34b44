"""The architectures by name, ours and those of torchvision and timm, and the layer that normalises.

It knows no files.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from ddsmoothing.errors import InputError, ModelError, extra, unknown
from ddsmoothing.models.networks import LeNet, ResNet, WideResNet, medium_cnn, small_cnn, stride_cnn
from ddsmoothing.models.unet import SmallUNet

LIBRARIES: Final = ("torchvision", "timm")
TRANSFORMED: Final = ("googlenet", "inception_v3")  # torchvision's weights expect inputs in another scale


class Normalize(nn.Module):
    """``(x - mean) / std`` for each channel, as part of the model, so that noise and radii stay in pixel units."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def resnet50(num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """ResNet-50 as torchvision builds it."""
    return from_library("torchvision:resnet50", num_classes, shape)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a network is built.

    Attributes:
        build: from the number of classes and the shape of one input to the network, random weights, no normalisation.
        shape: of an input, where nothing else is said.   classes: the same.
        normalize: what ``auto`` means; ``auto``: by the shape of an input.
        denoiser: it gives images, not logits: ``D(y, sigma)``, both in pixel units; it has no classes.
    """

    build: Callable[[int, tuple[int, ...]], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    normalize: str = "auto"
    denoiser: bool = False


def _resnet(**options: Any) -> Architecture:
    return Architecture(build=lambda num_classes, shape: ResNet(num_classes, shape, **options))


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "small-cnn": Architecture(build=small_cnn, shape=(1, 28, 28)),
    "medium-cnn": Architecture(build=medium_cnn, shape=(1, 28, 28)),
    "stride-cnn": Architecture(build=stride_cnn, shape=(1, 28, 28)),
    "lenet": Architecture(build=LeNet, shape=(1, 28, 28), normalize="none"),
    "small-unet": Architecture(build=lambda _, shape: SmallUNet(shape[0]), shape=(1, 28, 28), classes=0, denoiser=True),
    "cifar-resnet18": _resnet(widths=(64, 128, 256, 512), blocks=2),
    "cifar-resnet18-7x7": _resnet(widths=(64, 128, 256, 512), blocks=2, wide_stem=True),
    "cifar-resnet20": _resnet(widths=(16, 32, 64), blocks=3),
    "cifar-resnet110": _resnet(widths=(16, 32, 64), blocks=18),
    "wrn-40-2": Architecture(build=lambda num_classes, shape: WideResNet(num_classes, shape, depth=40, widen=2)),
    "resnet50": Architecture(build=resnet50, shape=(3, 224, 224), classes=1000),
}


def in_library(arch: str) -> bool:
    """Is it ``torchvision:NAME`` or ``timm:NAME``?"""
    return arch.partition(":")[0] in LIBRARIES and ":" in arch


def architecture(arch: str) -> Architecture:
    """What is known of an architecture: a key of ARCHITECTURES, ``torchvision:NAME`` or ``timm:NAME``."""
    if in_library(arch):
        return Architecture(build=lambda k, shape: from_library(arch, k, shape), shape=(3, 224, 224), classes=1000)
    if arch not in ARCHITECTURES:
        known = [*ARCHITECTURES, *(f"{library}:NAME" for library in LIBRARIES)]
        raise ModelError(unknown("architecture", arch, known))
    return ARCHITECTURES[arch]


def library(arch: str) -> tuple[ModuleType, str]:
    """The module that builds ``torchvision:NAME`` or ``timm:NAME``, and NAME, which it knows.

    Raises: ModelError if the package is missing; InputError if it has no such model.
    """
    package, _, name = arch.partition(":")
    try:
        module = importlib.import_module("torchvision.models" if package == "torchvision" else "timm")
    except ImportError as error:
        raise ModelError(f"{arch} needs the package {package}: {extra('vision')}.") from error
    # a plain name: timm takes "hf-hub:.." and paths too, which would be fetched
    if not re.fullmatch(r"[\w.-]+", name) or name.partition(".")[0] not in module.list_models():
        names = [f"{package}:{known}" for known in module.list_models()]
        close = unknown("model", arch, names).partition(" Known")[0]
        raise InputError(f"{close} The package {package} lists its models with list_models().")
    return module, name


def from_library(arch: str, num_classes: int, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """``torchvision:NAME`` or ``timm:NAME`` with random weights, unless the options say otherwise."""
    module, name = library(arch)
    if module.__name__ == "timm":
        built = module.create_model(name, num_classes=num_classes, in_chans=shape[0], **options)
    else:
        if shape[0] != 3:
            raise InputError(f"{arch} takes images of 3 channels, got inputs of shape {shape}.")
        built = module.get_model(name, weights=None, num_classes=num_classes, **options)
    return built  # type: ignore[no-any-return]


def published(module: ModuleType, name: str, num_classes: int) -> dict[str, torch.Tensor]:
    """The weights that torchvision or timm offer first for a network, downloaded.

    Raises: InputError where there are none for so many classes.
    """
    timm = module.__name__ == "timm"
    if timm:
        config = module.get_pretrained_cfg(name)
        offered = config.num_classes if config is not None and (config.hf_hub_id or config.url) else 0
    else:
        choice = module.get_model_weights(name).DEFAULT
        offered = 0 if name in TRANSFORMED else len(choice.meta.get("categories", ()))
    if offered != num_classes:
        raise InputError(
            f"{name} is offered with weights for {offered} classes, got {num_classes}; give --weights FILE."
        )
    if timm:
        return module.create_model(name, pretrained=True).state_dict()  # type: ignore[no-any-return]
    return choice.get_state_dict(progress=True, check_hash=True, weights_only=True)  # type: ignore[no-any-return]
