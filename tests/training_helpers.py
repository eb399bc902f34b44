"""A small data set and models for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddsmoothing.data import Dataset
from ddsmoothing.training import TrainConfig
from ddsmoothing.training.checkpoint import load_checkpoint
from ddsmoothing.training.loop import CHECKPOINT


def toy_data(size: int = 60, shape: tuple[int, ...] = (1, 6, 6), split: str = "train") -> Dataset:
    """Three classes of images that differ in which third is bright."""
    generator = np.random.default_rng(7 if split == "train" else 8)
    y = np.arange(size) % 3
    x = generator.integers(0, 90, (size, *shape))
    third = shape[-1] // 3
    for i, label in enumerate(y):
        x[i, ..., third * label : third * (label + 1)] += 150
    return Dataset(name="toy", split=split, x=x.astype(np.uint8), y=y.astype(np.int64))


def toy_model(seed: int = 0, channels: int = 1, norm: bool = True, dropout: float = 0.0) -> nn.Module:
    """A convolution and a linear layer, about 250 parameters."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(channels, 4, 3, 2, 1)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(36, 3)]
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


class Told(nn.Module):
    """The toy model told sigma: its input is normalised by it, and its logarithm shifts the logits."""

    takes_sigma = True

    def __init__(self, seed: int = 0, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = toy_model(seed, norm=norm, dropout=dropout)
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == x.shape[:1]
        scale = (0.09 + sigma.square()).sqrt().reshape(-1, 1, 1, 1)
        logits: torch.Tensor = self.net((x - 0.4) / scale)
        return logits + sigma.log()[:, None] * self.shift


class ToyDenoiser(nn.Module):
    """A convolution that is told sigma, from images to images."""

    takes_sigma = True

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.out = nn.Conv2d(4, 1, 3, padding=1)
        generator = torch.Generator().manual_seed(2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == y.shape[:1]
        out: torch.Tensor = self.out(torch.relu(self.norm(self.conv(y))) / (1 + sigma.reshape(-1, 1, 1, 1)))
        return y + out


class Denoised(nn.Module):
    """A denoiser before a classifier, by the two names that training relies on."""

    takes_sigma = True

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.denoiser, self.classifier = ToyDenoiser(norm=True), toy_model(dropout=dropout)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.denoiser(x, sigma))
        return logits


MODELS = {"plain": toy_model, "told": Told, "denoised": Denoised, "denoiser": ToyDenoiser}


def toy_config(**changes: Any) -> TrainConfig:
    """Two epochs of seven batches."""
    given: dict[str, Any] = {
        **{"data": "toy", "model": "toy", "sigma": 0.2, "epochs": 2, "batch": 8, "lr": 0.05, "validation": 0.1},
        **{"seed": 11, "macer": {"weight": 1.0, "beta": 4.0}},
    }
    return TrainConfig.model_validate(given | changes)


MOVING = {"steps": 2, "step": 0.02, "samples": 2}


def contents(folder: Path) -> dict[str, Any]:
    """Everything a run left that a repeated one must leave too."""
    state = load_checkpoint(folder / CHECKPOINT)
    found: dict[str, Any] = {"position": state.position.model_dump(exclude={"digest"}), "sigma": state.sigma}
    found |= {f"model.{name}": value for name, value in state.model.items()}
    return found | {f"optimizer.{name}": value for name, value in state.optimizer.items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal to the last bit."""
    return a.keys() == b.keys() and all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key] for key, value in a.items()
    )
