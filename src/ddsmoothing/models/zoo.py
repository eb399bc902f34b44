"""The architectures: networks from inputs ``(B, C, H, W)`` to logits ``(B, K)``, and the layer that normalises.

It knows no files. Names inside the networks are those of the published checkpoints, so that these load by name.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from ddsmoothing.errors import InputError, ModelError, unknown

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


def small_cnn(num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Three convolutions and a linear layer: 30,074 parameters for 28x28 grey images of ten classes."""
    channels, height, width = shape
    return nn.Sequential(
        *_convolution(channels, 16, kernel=5, stride=2),
        *_convolution(16, 32, kernel=3, stride=2),
        *_convolution(32, 32, kernel=3, stride=1),
        nn.Flatten(),
        nn.Linear(32 * math.ceil(height / 4) * math.ceil(width / 4), num_classes),
    )


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network for 32x32 images.

    Args:
        widths: channels of each stage; the second and all later ones halve the image.   blocks: in each stage.
        wide_stem: begin as the CIFAR-10 network of Alfarra et al. does: a 7x7 convolution of stride 2 without batch
            normalisation, and pooling; else with a 3x3 convolution.
    References: He et al. 2016, Deep residual learning for image recognition, section 4.2; Alfarra et al. 2022.
    """

    def __init__(
        self, num_classes: int, shape: tuple[int, ...], *, widths: tuple[int, ...], blocks: int, wide_stem: bool = False
    ) -> None:
        super().__init__()
        self.wide_stem, inputs = wide_stem, widths[0]
        if wide_stem:
            self.conv1 = nn.Conv2d(shape[0], inputs, 7, 2, 3, bias=False)
        else:
            self.conv1, self.bn1 = _conv3x3(shape[0], inputs), nn.BatchNorm2d(inputs)
        for i, width in enumerate(widths):
            first = BasicBlock(inputs, width, stride=1 if i == 0 else 2)
            rest = (BasicBlock(width, width, stride=1) for _ in range(blocks - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
            inputs = width
        self.stages = len(widths)
        self.fc = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.wide_stem:
            x = functional.max_pool2d(functional.relu(self.conv1(x)), 3, 2, 1)
        else:
            x = functional.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class WideBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = functional.relu(self.bn1(x))
        out = self.conv2(functional.relu(self.bn2(self.conv1(start))))
        return out + (x if self.convShortcut is None else self.convShortcut(start))  # type: ignore[no-any-return]


class WideStage(nn.Module):
    """Blocks of one width, the first of which may halve the image."""

    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A wide residual network for 32x32 images.

    References: Zagoruyko and Komodakis 2016, Wide residual networks.
    """

    def __init__(self, num_classes: int, shape: tuple[int, ...], *, depth: int, widen: int) -> None:
        super().__init__()
        widths, blocks = [16, 16 * widen, 32 * widen, 64 * widen], (depth - 4) // 6
        self.conv1 = _conv3x3(shape[0], 16)
        self.block1 = WideStage(widths[0], widths[1], 1, blocks)
        self.block2 = WideStage(widths[1], widths[2], 2, blocks)
        self.block3 = WideStage(widths[2], widths[3], 2, blocks)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))  # type: ignore[no-any-return]


def _initialise(model: nn.Module) -> None:
    """He et al. 2015: convolutions with variance 2 / (outgoing connections)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet50(num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """ResNet-50 as torchvision builds it."""
    return from_library("torchvision:resnet50", num_classes, shape)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a network is built.

    Attributes:
        build: from the number of classes and the shape of one input to the network, random weights, no normalisation.
        shape: of an input, where nothing else is said.   classes: the same.
    """

    build: Callable[[int, tuple[int, ...]], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10


def _resnet(**options: Any) -> Architecture:
    return Architecture(build=lambda num_classes, shape: ResNet(num_classes, shape, **options))


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "small-cnn": Architecture(build=small_cnn, shape=(1, 28, 28)),
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
        raise ModelError(f"{arch} needs the package {package}; pip install 'ddsmoothing[vision]'.") from error
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
