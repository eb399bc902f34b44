"""Remake the shipped sample and models from the idx files of Fashion-MNIST.

    python tools/make_assets.py --data /usr/share/datasets/fashion-mnist

The sample is every tenth image of the test split (0, 10, .., 9990). The models are trained on the training split alone,
with Gaussian noise whose sigma is drawn for each image, log-uniform between two training sigmas: one that is not told
sigma, by the loop below, and one that is, by ``ddsmoothing.training`` as benchmarks/conditional.py measured it. Class
offsets are fitted for the first one on every fiftieth image of the training split, with ``--offsets`` nothing else is.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ddsmoothing import SmoothedClassifier, fit_offsets
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.models import ModelSpec, load_model, model_identity, save_model, spec_of
from ddsmoothing.stateless import save_fit
from ddsmoothing.training import TrainConfig
from ddsmoothing.training import train as train_by_package

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from conditional import TRAINED  # noqa: E402

ASSETS = ROOT / "src" / "ddsmoothing" / "assets"
SPEC = ModelSpec(
    arch="small-cnn",
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=(0.286,),
    std=(0.353,),
    training_sigmas=(0.12, 1.0),
)
BATCH = 256
OFFSETS: dict[str, Any] = {"sigma": 1.0, "n": 96, "samples": 500, "seed": 0}
OFFSETS_SKIP = 50  # of the training split: 1,200 images


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> torch.nn.Module:
    """Train SPEC's architecture on uint8 images x and labels y."""
    torch.manual_seed(seed)
    model = SPEC.build().to(memory_format=torch.channels_last)
    steps = len(x) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, epochs * steps, pct_start=0.15)
    low, high = (math.log(sigma) for sigma in SPEC.training_sigmas)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            clean = x[rows].float() / 255
            sigma = torch.empty(len(rows), 1, 1, 1).uniform_(low, high).exp()
            noisy = (clean + sigma * torch.randn_like(clean)).contiguous(memory_format=torch.channels_last)
            loss = cross_entropy(model(noisy), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {time.perf_counter() - start:.1f} s", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()


def make_by_package(options: dict[str, Any], data: str, path: Path) -> None:
    """Train a network by ``ddsmoothing.training``, and write it."""
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(**options, data=data)
        trained = train_by_package(
            config, Path(out) / "run", device="cpu", on_epoch=lambda record: print(record, flush=True)
        )
    ship(trained.model, path)


def ship(model: torch.nn.Module, path: Path) -> None:
    """Write a trained network: a classifier with the names of the classes, a denoiser in half the bytes."""
    spec = spec_of(model)
    assert spec is not None
    if spec.classes:
        spec = spec.model_copy(update={"classes": SPEC.classes})
    else:
        model = model.half()  # a file's numbers become float32 again when it is loaded
    save_model(model, spec, path)


def make_offsets(training: Dataset, path: Path) -> None:
    """Fit class offsets for the shipped model at the demo's best fixed sigma, and write them."""
    model = load_model("fashion-mnist-cnn")
    smoothed = SmoothedClassifier(model, num_classes=10, block_size=256)
    ids = list(range(0, len(training), OFFSETS_SKIP))
    x, y = training[ids]
    found = fit_offsets(smoothed, x, y, ids=ids, **OFFSETS)
    identity = model_identity(model, None)
    save_fit(found.model_copy(update={"model": identity, "data": training.fingerprint()}), path)
    print(found.offsets, found.without, found.figures, sep="\n")


def main() -> None:
    """Write all assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of idx files")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--offsets", action="store_true", help="fit the offsets of the shipped model only")
    args = parser.parse_args()
    name = f"fashion-mnist:{args.data}"
    test, training = (load_data(name, split=split) for split in ("test", "train"))
    assert test.y is not None and training.y is not None
    if args.offsets:
        make_offsets(training, ASSETS / "fashion-mnist-offsets.json")
        return
    np.savez_compressed(ASSETS / "fashion-mnist-sample.npz", x=test.x[::10], y=test.y[::10].astype(np.uint8))
    model = train(torch.from_numpy(training.x.copy()), torch.from_numpy(training.y), args.epochs, args.seed)
    save_model(model, SPEC, ASSETS / "fashion-mnist-cnn.safetensors")
    make_offsets(training, ASSETS / "fashion-mnist-offsets.json")
    make_by_package(TRAINED["conditional"], name, ASSETS / "fashion-mnist-conditional.safetensors")
    make_by_package(TRAINED["denoiser"], name, ASSETS / "fashion-mnist-denoiser.safetensors")


if __name__ == "__main__":
    main()
