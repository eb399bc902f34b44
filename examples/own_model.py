"""Certify a model of your own on vectors: two noisy rings, a small network trained with Gaussian noise.

Vectors that are not 8-bit images get float noise; every result says so. python examples/own_model.py
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ddsmoothing as dds

SIGMA = 0.1  # of the training noise, in the units of the vectors


def rings(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``size`` points ``(B, 2)`` on circles of radius 0.2 and 0.45 round (0.5, 0.5), and which circle."""
    y = torch.randint(2, (size,), generator=generator)
    angle = 2 * math.pi * torch.rand(size, generator=generator)
    radius = torch.where(y == 0, 0.2, 0.45)
    return 0.5 + radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), y


def train(generator: torch.Generator) -> nn.Module:
    """A network from ``(B, 2)`` to logits ``(B, 2)``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(500):
        x, y = rings(256, generator)
        loss = cross_entropy(model(x + SIGMA * torch.randn(x.shape, generator=generator)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def overlaps(x: torch.Tensor, result: dds.Certification) -> int:
    """Pairs of certified balls that have points in common and different classes."""
    distance = torch.cdist(x.double(), x.double()).numpy()
    held = result.radius > 0
    meet = (distance < result.radius[:, None] + result.radius) & held[:, None] & held
    return int((meet & (result.prediction[:, None] != result.prediction)).sum()) // 2


def main() -> None:
    """Train, certify at one sigma and at a sigma chosen for each vector, and see what the level pointwise means."""
    generator = torch.Generator().manual_seed(0)
    model = train(generator)
    x, y = rings(20, generator)
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2)
    fixed = smoothed.certify(x, SIGMA, n=5000, seed=0)
    chosen = smoothed.certify(x, dds.search_sigma(smoothed, x, sigma0=SIGMA, seed=1), n=5000, seed=1)
    for name, result in {"fixed": fixed, "chosen": chosen}.items():
        right = (result.prediction == y.numpy()).sum()
        print(f"{name}: noise {set(result.noise)}, {right} of {len(y)} right, mean radius {result.radius.mean():.3f}")
        print(f"  balls of different class that overlap: {overlaps(x, result)} pairs")
    # One sigma is one classifier, so its balls of different class are disjoint (each with probability 1 - alpha).
    # Two inputs with two sigmas are answered by two classifiers, whose balls may well disagree: level pointwise.


if __name__ == "__main__":
    main()
