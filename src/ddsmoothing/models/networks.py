"""The networks themselves: from inputs ``(B, C, H, W)`` to logits ``(B, K)``, without normalisation.

It knows no files. Names inside are those of the published checkpoints, so that these load by name.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn
from torch.nn import functional

HALF: Final = (torch.bfloat16, torch.float16)


class Float32Linear(nn.Linear):
    """A linear layer computed in float32 under reduced precision too: for logits, of which few then tie."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        if not torch.is_autocast_enabled(kind) and {x.dtype, self.weight.dtype}.isdisjoint(HALF):
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            return functional.linear(x.float(), self.weight.float(), self.bias.float())


def small_cnn(num_classes: int, shape: tuple[int, ...], widths: tuple[int, int, int] = (16, 32, 32)) -> nn.Module:
    """Three convolutions and a linear layer: 30,074 parameters for 28x28 grey images of ten classes."""
    channels, height, width = shape
    first, second, third = widths
    return nn.Sequential(
        *_convolution(channels, first, kernel=5, stride=2),
        *_convolution(first, second, kernel=3, stride=2),
        *_convolution(second, third, kernel=3, stride=1),
        nn.Flatten(),
        Float32Linear(third * math.ceil(height / 4) * math.ceil(width / 4), num_classes),
    )


def medium_cnn(num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The small one with half as many channels again: 55,474 parameters for 28x28 grey images of ten classes."""
    return small_cnn(num_classes, shape, (24, 48, 48))


def stride_cnn(num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Three convolutions of stride 2 and two linear layers: 356,970 parameters for 28x28 grey images of ten classes."""
    channels, height, width = shape
    return nn.Sequential(
        *_convolution(channels, 32, kernel=5, stride=2),
        *_convolution(32, 64, kernel=3, stride=2),
        *_convolution(64, 128, kernel=3, stride=2),
        nn.Flatten(),
        nn.Linear(128 * math.ceil(height / 8) * math.ceil(width / 8), 128),
        nn.ReLU(),
        Float32Linear(128, num_classes),
    )


class LeNet(nn.Module):
    """Two 5x5 convolutions, each pooled, and two linear layers.

    Checkpoints of the public Fashion-MNIST table load into it; it has no normalisation.

    References: Jeong, Kim and Shin 2023, with their repository alinlab/smoothing-catrs.
    """

    def __init__(self, num_classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        left = 50 * _pooled(_pooled(height)) * _pooled(_pooled(width))
        self.conv1, self.conv2 = nn.Conv2d(channels, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(left, 500), Float32Linear(500, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


def _pooled(size: int) -> int:
    """Pixels left of a side after a 5x5 convolution without padding and pooling by two."""
    return (size - 4) // 2


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
        self.fc = Float32Linear(inputs, num_classes)
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
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), Float32Linear(widths[3], num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))  # type: ignore[no-any-return]


def _initialise(model: nn.Module) -> None:
    """He et al. 2015: convolutions with variance 2 / (outgoing connections)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
