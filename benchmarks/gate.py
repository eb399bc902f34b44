"""What the one gate to a base classifier costs: private copies, checked answers and errors, against the bare module.

    python benchmarks/gate.py                  under a minute

Both give the same blocks of the small CNN to as many threads, in turns; the logits are compared once. ``bare`` shares
one module among the threads, which is what mixes inputs where a module keeps state. Ratios are medians of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import ddsmoothing as dds
from ddsmoothing.counting.engine import Engine
from ddsmoothing.devices import torch_threads

ROWS = 256
PASSES = 40  # of each thread, in one measurement
Forward = Callable[[torch.Tensor], torch.Tensor]


def seconds(ways: list[Forward], x: torch.Tensor, pool: ThreadPoolExecutor) -> float:
    """For all passes of all threads."""

    def work(forward: Forward) -> None:
        with torch.inference_mode():
            for _ in range(PASSES):
                forward(x)

    start = time.perf_counter()
    list(pool.map(work, ways))
    return time.perf_counter() - start


def main() -> None:
    """Print a line for one thread and one for two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    x, _ = dds.load_data("fashion-mnist-sample")[:200]
    x = torch.rand(ROWS, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    model = dds.load_model("fashion-mnist-cnn").eval()
    for threads in (1, 2):
        times: dict[str, list[float]] = {"bare": [], "gate": []}
        with torch_threads(1), Engine(model).open(threads) as callers, ThreadPoolExecutor(threads) as pool:
            gated: list[Forward] = [lambda x, caller=caller: caller.logits(x, 0.5, 10) for caller in callers]
            assert len(gated) == threads
            assert torch.equal(gated[-1](x), model(x))
            for _ in range(args.rounds):
                times["bare"].append(seconds([model] * threads, x, pool))
                times["gate"].append(seconds(gated, x, pool))
        ratio = np.median(np.array(times["gate"]) / np.array(times["bare"]))
        passes = {name: f"{min(each) / PASSES * 1e3:.3f}" for name, each in times.items()}
        print(f"{threads} threads, {ROWS} rows: bare {passes['bare']} ms, gate {passes['gate']} ms, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
