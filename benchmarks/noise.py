"""What a coordinate of exact grid noise costs on one thread, against searching every undecided cell, and torch.randn.

    python benchmarks/noise.py                  about a minute; writes results/noise.json

All contestants take turns on the same addresses and give the same integers, which is checked. Most cells of 16 bits
that do not decide hold one threshold: comparing its low bits decides. ``searched`` is the binary search over all
thresholds that this replaced. Figures are the fastest of all rounds in nanoseconds, and ratios are theirs.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.noise import GridBlock, GridTable, grid_table
from ddsmoothing.streams import Generators, rows_per_block

RESULTS = Path(__file__).parent / "results" / "noise.json"
SIGMAS = (0.12, 0.25, 0.5, 1.0, 4.0, 12.0)
D = 784


class Searched(GridTable):
    """The same table, every undecided cell searched."""

    def refined(self, cells: NDArray[np.intp], words: NDArray[np.uint64]) -> NDArray[np.int32]:
        """As GridTable's."""
        u = (cells.astype(np.uint64) << np.uint64(47)) | (words >> np.uint64(17))
        return (np.searchsorted(self.thresholds, u, side="right") + self.start).astype(np.int32)


def seconds(draw: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    draw()
    return time.perf_counter() - start


def compare(sigma: float, rounds: int) -> dict[str, float]:
    """Nanoseconds a coordinate of each contestant, and how much faster the new one is."""
    rows, new = rows_per_block(D), grid_table("gaussian", sigma)
    old = Searched(**{field.name: getattr(new, field.name) for field in fields(GridTable)})
    out, same, generators = np.empty((rows, D), np.int16), np.empty((rows, D), np.int16), Generators()
    times: dict[str, list[float]] = {"searched": [], "cells": [], "torch.randn": []}
    for block in range(rounds):
        key = (0, 0, 0, block)
        times["searched"].append(seconds(lambda: GridBlock(old, key, D, generators).fill(out)))  # noqa: B023
        times["cells"].append(seconds(lambda: GridBlock(new, key, D, generators).fill(same)))  # noqa: B023
        times["torch.randn"].append(seconds(lambda: torch.randn(rows, D)))
        assert np.array_equal(out, same)
    found = {f"{name} ns": round(min(each) * 1e9 / out.size, 2) for name, each in times.items()}
    ratio = min(times["searched"]) / min(times["cells"])
    undecided = float(np.mean(new.first == new.undecided))
    return {"sigma": sigma, "undecided share": round(undecided, 4), **found, "ratio": round(ratio, 2)}


def main() -> None:
    """Print a line for each sigma and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for sigma in SIGMAS:
        lines.append(compare(sigma, args.rounds))
        print("  ".join(f"{name} {value:g}" for name, value in lines[-1].items()), flush=True)
    about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "numpy": np.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"d": D, "rounds": args.rounds, **about, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
