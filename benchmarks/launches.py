"""What holds a GPU back, counted without one: launches, copies and waits of a forward pass, in both loops.

    python benchmarks/launches.py      under a minute; writes results/launches.json

``ClassCounter`` is the loop of a CPU, ``DeviceCounter`` that of a GPU. Both run here on the CPU, kernels in Triton's
interpreter, at two numbers of passes; the difference is what a pass costs. A launch is an operation of torch that
computes or copies, or a kernel; views and memory that is set aside are none. Copies from this machine's memory are
counted where the code asks for them: from memory that is not pinned they wait for the device. So does whatever reads
a number from it. The model is one matrix product with a bias: one launch.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ddsmoothing.counting import ahead, device, local
from ddsmoothing.counting.contract import DUELS, VOTES, WINS, Request
from ddsmoothing.counting.device import DeviceCounter
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.local import ClassCounter
from ddsmoothing.inputs import prepare
from ddsmoothing.kernels import device_noise, triton_kernels
from ddsmoothing.noise import Gaussian

RESULTS = Path(__file__).parent / "results" / "launches.json"
D, K, ROWS, PASSES = 784, 10, 64, 21
WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
KINDS: dict[str, dict[str, Any]] = {VOTES: {}, WINS: {"tally": WINS, "anchor": 3}, DUELS: {"tally": DUELS}}


class Operations(TorchDispatchMode):
    """Counts what torch computes or copies, and what waits for a number."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation passes here."""
        returns = func._schema.returns
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
        if func._schema.name in WAITS:
            self._seen["waits"] += 1
        elif not view and "empty" not in func._schema.name:
            self._seen["launches"] += 1
        return func(*args, **kwargs or {})


class Kernel:
    """A kernel whose launches are counted, and nothing of what the interpreter does for it."""

    def __init__(self, kernel: Any, seen: Counter[str]) -> None:
        self._kernel, self._seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """What launches it."""

        def launch(*args: Any, **options: Any) -> None:
            self._seen["launches"] += 1
            with _disable_current_modes():
                self._kernel[grid](*args, **options)

        return launch


class SameThread:
    """In place of a pool: threads of one would not be seen."""

    def __init__(self, _: int) -> None: ...

    def __enter__(self) -> SameThread:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Does it at once."""
        future: Future[Any] = Future()
        future.set_result(work(*args))
        return future


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """What is done inside."""
    seen: Counter[str] = Counter()
    to, to_device = torch.Tensor.to, device_noise.to_device

    def moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["copies that wait"] += any(isinstance(arg, torch.device) for arg in (*args, *kwargs.values()))
        return to(self, *args, **kwargs)

    def pinned(*args: Any) -> torch.Tensor:
        seen["copies that do not wait"] += 1
        seen["copies that wait"] -= 1  # by the call below
        return to_device(*args)

    with (
        patch.object(torch.Tensor, "to", moved),
        patch.object(triton_kernels, "decide", Kernel(triton_kernels.decide, seen)),
        patch.object(triton_kernels, "refine", Kernel(triton_kernels.refine, seen)),
        patch.object(triton_kernels, "divide", Kernel(triton_kernels.divide, seen)),
        patch.object(device_noise, "to_device", pinned),
        patch.object(ahead, "to_device", pinned),
        patch.object(device, "to_device", pinned),
        patch.object(local, "ThreadPoolExecutor", SameThread),
        Operations(seen),
    ):
        yield seen


def a_pass(loop: Callable[..., Any], kind: str) -> dict[str, float]:
    """Launches, copies and waits of one pass of a loop that counts so."""
    engine = Engine(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(D, K)).eval())
    batch, found = prepare(torch.zeros((1, D), dtype=torch.uint8), [1], None), []
    for passes in (PASSES, 2 * PASSES):
        counter = loop(engine, Gaussian(), K, ROWS)
        request = Request(row=0, sigma=0.25, stream=1, n=passes * ROWS, **KINDS[kind])
        counter.count(batch, [request], 0)  # tables are made once
        with watched() as seen:
            counter.count(batch, [request], 0)
        found.append(seen)
    names = ("launches", "copies that wait", "copies that do not wait", "waits")
    return {name: round((found[1][name] - found[0][name]) / PASSES, 2) for name in names}


def main() -> None:
    """Print and write a line for each loop and tally."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    device_noise.COUNTERS, device_noise.LANES, device_noise.NUMBERS = 2048, 4096, 2**16
    torch.set_num_threads(1)
    table = {f"{loop.__name__}, {kind}": a_pass(loop, kind) for kind in KINDS for loop in (ClassCounter, DeviceCounter)}
    for name, line in table.items():
        print(f"{name:22}", "  ".join(f"{what} {count:g}" for what, count in line.items()), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows of a pass": ROWS, "d": D, "a pass": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
