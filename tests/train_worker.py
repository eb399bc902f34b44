"""One process of a training run: what torchrun starts. Arguments: folder, then a JSON of options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ddsmoothing.training import train
from training_helpers import MODELS, toy_config, toy_data


def main() -> None:
    torch.set_num_threads(1)
    options = json.loads(sys.argv[2])
    stop_after, kind = options.pop("stop_after", None), options.pop("kind", "plain")
    seen: list[int] = []
    stop = None if stop_after is None else lambda: len(seen) >= stop_after
    train(
        toy_config(**options),
        Path(sys.argv[1]),
        model=MODELS[kind](norm=False),
        data=toy_data(),
        device="cpu",
        progress=seen.append,
        stop=stop,
    )


if __name__ == "__main__":
    main()
