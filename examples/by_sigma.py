"""Three networks, each trained at one sigma, as one classifier: the search chooses network and sigma together.

python examples/by_sigma.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import ddsmoothing as dds
from ddsmoothing.training import TrainConfig, train

SIGMAS = (0.25, 0.5, 1.0)
UPPERS = (0.35, 0.7, float("inf"))  # of the sigmas that each network serves: half way in logarithm to the next one
TRAINED_ON = 800  # of the 1,000 shipped images; the other 200 are certified


def trained(out: Path) -> list[Path]:
    """The files of three small networks, alike but for the sigma of their noise."""
    files = []
    for sigma in SIGMAS:
        config = TrainConfig(
            data="fashion-mnist-sample", model="small-cnn", maximum=TRAINED_ON, sigma=sigma, epochs=12, batch=64, seed=0
        )
        train(config, out / f"sigma-{sigma}", device="cpu")
        files.append(out / f"sigma-{sigma}" / "model.safetensors")
    return files


def certified(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, sigma0: float) -> tuple[float, list[float]]:
    """Average certified radius and the sigmas chosen."""
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)
    found = dds.search_sigma(smoothed, x, sigma0=sigma0, sigma_min=0.12, sigma_max=1.5, n=1000, seed=0)
    result = smoothed.certify(x, found, n0=100, n=1000, seed=0)
    return float((result.radius * (result.prediction == y.numpy())).mean()), found.sigma.tolist()


def main(out: Path) -> None:
    """Train, write the file of ranges, certify with each network alone and with all of them as one."""
    files = trained(out)
    ranges = [
        f'[[range]]\nupper = {upper}\nmodel = "{file.relative_to(out).as_posix()}"\n'
        for upper, file in zip(UPPERS, files, strict=True)
    ]
    (out / "ranges.toml").write_text("\n".join(["sigma_range = [0.12, 1.5]\n", *ranges]))
    x, y = dds.load_data("fashion-mnist-sample")[TRAINED_ON::5]
    for sigma, file in zip(SIGMAS, files, strict=True):
        acr, _ = certified(dds.load_model(str(file)), x, y, sigma)
        print(f"network of sigma {sigma:<5g} average certified radius {acr:.3f}")
    acr, chosen = certified(dds.load_model(f"by-sigma:{out / 'ranges.toml'}"), x, y, 0.5)
    shares = [sum(low < sigma <= high for sigma in chosen) for low, high in zip((0.0, *UPPERS), UPPERS, strict=False)]
    print(f"all three as one       average certified radius {acr:.3f}; images of each network: {shares}")
    print(f"on the command line: --model by-sigma:{out / 'ranges.toml'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "by-sigma"))
