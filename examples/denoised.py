"""A denoiser before a classifier that never saw noise: one base classifier for every sigma, with nothing retrained.

python examples/denoised.py [FOLDER]

The shipped denoiser (236,433 parameters) was trained on Fashion-MNIST's training split by ``ddsmoothing train --preset
fashion-mnist-denoiser``; `make assets` remakes it. The classifier is trained here, on 800 of the 1,000 shipped images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import ddsmoothing as dds
from ddsmoothing.training import TrainConfig, train

TRAINED_ON = 800  # of the 1,000 shipped images; some of the other 200 are certified
NO_NOISE = 0.001  # a thousandth of a pixel's range


def clean_classifier(out: Path) -> torch.nn.Module:
    """A small network that hardly saw noise."""
    config = TrainConfig(
        data="fashion-mnist-sample", model="small-cnn", maximum=TRAINED_ON, sigma=NO_NOISE, epochs=12, batch=64, seed=0
    )
    return train(config, out / "clean", device="cpu").model


def average_radius(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, sigma: float) -> float:
    """Average certified radius at one sigma."""
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, block_size=128)
    result = smoothed.certify(x, sigma, n0=50, n=250, seed=0)
    return float((result.radius * (result.prediction == y.numpy())).mean())


def main(out: Path) -> None:
    """Train the classifier, certify it alone and behind the denoiser."""
    classifier = clean_classifier(out)
    denoised = dds.DenoisedClassifier(dds.load_denoiser("fashion-mnist-denoiser"), classifier).eval()
    x, y = dds.load_data("fashion-mnist-sample")[TRAINED_ON::16]
    print("sigma   alone   behind the denoiser   (average certified radius)")
    for sigma in (0.12, 0.25, 0.5):
        alone, behind = (average_radius(model, x, y, sigma) for model in (classifier, denoised))
        print(f"{sigma:<5g}   {alone:.3f}   {behind:.3f}")
    print("on the command line: --denoiser fashion-mnist-denoiser --classifier", out / "clean" / "model.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "denoised"))
