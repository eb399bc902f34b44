"""The certified memory at size: reconciling a run, look-ups among many regions, main memory, growth.

    python benchmarks/memory.py           10,000 rows reconciled, look-ups among up to 100,000 regions; about a minute
    python benchmarks/memory.py --full    also among 1,000,000: about 10 minutes and 4 GB of disk

Images are synthetic, of CIFAR's size (3, 32, 32), 8 bits, with the 1/f spectrum of natural ones. One row in ten of the
run is a near-duplicate of another with a different class, so that there is something to reconcile. Look-ups are timed
in a process of their own, on one core, half of them inside a region; main memory is counted above what the process held
before it opened the file. Targets: 30 s; at 1,000,000 regions 25 ms a query and 400 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.memory import Binding, Risk, Store
from ddsmoothing.memory.apply import apply_memory, open_store
from ddsmoothing.memory.regions import Regions
from ddsmoothing.runs import Run

SHAPE = (3, 32, 32)
BATCH = 1000
RADIUS = 0.5
BINDING = Binding(
    model="id:benchmark",
    transform="x/255",
    norm="l2",
    dtype="float32",
    precision="fp32",
    shape=SHAPE,
    num_classes=10,
    vote="pairwise",
)


def images(size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` 8-bit images with a 1/f spectrum, ``(B, 3, 32, 32)``; the three colours share most of it."""
    f = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32)[None, :])
    f[0, 0] = 1 / 64
    noise = rng.standard_normal((size, 3, 32, 32), dtype=np.float32)
    noise += 1.5 * rng.standard_normal((size, 1, 32, 32), dtype=np.float32)
    made = np.fft.irfft2(np.fft.rfft2(noise) / f, s=(32, 32))
    made *= 0.25 / made.std((1, 2, 3), keepdims=True)
    return np.clip(np.round(255 * (made + 0.5)), 0, 255).astype(np.uint8)


class Flat(torch.nn.Module):
    """A model whose class never changes; its one certificate is copied to every row of the run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()


def synthetic_run(folder: Path, size: int) -> tuple[Run, dds.Dataset]:
    """A run of so many rows with random classes and radii, and its data."""
    rng = np.random.default_rng(0)
    x, y = images(size, rng), rng.integers(0, 10, size)
    near = np.arange(1, size, 10)
    x[near] = np.clip(x[near - 1].astype(int) + rng.integers(-3, 4, x[near].shape), 0, 255)
    y[near] = (y[near - 1] + 1) % 10
    data = dds.Dataset(name="synthetic", split="test", x=x, y=y)
    smoothed = dds.SmoothedClassifier(Flat(), dds.L2Certificate(), num_classes=10)
    made = certify_run(smoothed, data, CertifyRequest(0.25, n0=10, n=100, maximum=1, seed=0), folder, model_name="flat")
    first, radii = made.rows[0], rng.uniform(0.1, 1.0, size)
    rows = tuple(
        first.model_copy(
            update={
                "id": i,
                "input_sha256": hashlib.sha256(x[i].tobytes()).hexdigest(),
                "label": int(y[i]),
                "prediction": int(y[i]),
                "radius": float(radii[i]),
            }
        )
        for i in range(size)
    )
    subset = made.header.subset.model_copy(update={"max": None, "size": size})
    header = made.header.model_copy(update={"subset": subset})
    return Run(path=folder, header=header, rows=rows), data


def reconcile(folder: Path, size: int) -> None:
    """Time a run taken into an empty memory, online and order-free, from reading its inputs to the new run folder."""
    run, data = synthetic_run(folder / "run", size)
    for free in (False, True):
        start = time.perf_counter()
        store = open_store(folder / f"{free}.memory", run, data, None)
        done = apply_memory(run, data, store, folder / f"out-{free}", order_free=free)
        seconds = time.perf_counter() - start
        store.close()
        rule = "order-free" if free else "online"
        print(
            f"reconcile {size} rows, {rule:10}: {seconds:6.1f} s; kept {done.kept}, cut {done.cut} (to nothing "
            f"{done.emptied}), answered {done.answered}, class changed {done.flipped}",
            flush=True,
        )


def load(path: Path, size: int) -> float:
    """Append so many regions of random class in a few transactions; returns seconds spent in appending."""
    rng, seconds = np.random.default_rng(1), 0.0
    store = Store.open(path) if path.exists() else Store.create(path, BINDING, Risk(delta=0.01), seed=1)
    while len(store) < size:
        points = images(min(BATCH, size - len(store)), np.random.default_rng(len(store)))
        points = points.reshape(len(points), -1)
        start = time.perf_counter()
        sketches, labels = store.sketch.of(points), rng.integers(0, 10, len(points))
        with store.writing():
            for point, sketch, label in zip(points, sketches, labels, strict=True):
                store.append(
                    point,
                    label=int(label),
                    radius=RADIUS,
                    certified=RADIUS,
                    sigma=0.25,
                    attempt=store.reserve(),
                    sketch=sketch,
                )
        seconds += time.perf_counter() - start
    store.close()
    return seconds


def resident() -> float:
    """Main memory of this process now, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def measure(path: Path, queries: int) -> None:
    """Open a memory and look points up; prints one JSON object."""
    probes = images(queries, np.random.default_rng(2**31)).reshape(queries, -1)
    stored = images(BATCH, np.random.default_rng(0)).reshape(BATCH, -1)[:queries]
    probes[::2] = np.clip(stored[::2].astype(int) + 1, 0, 255)  # inside: at distance below sqrt(3072)/255 = .22
    before, start = resident(), time.perf_counter()
    store = Store.open(path)
    opened, regions, times, inside = time.perf_counter() - start, Regions(store), [], 0
    for point in probes:
        start = time.perf_counter()
        store.refresh()
        inside += regions.look_up(point, store.sketch.of(point[None])[0]) is not None
        times.append(time.perf_counter() - start)
    found = {"regions": len(store), "opened": opened, "inside": inside, "mb": resident() - before}
    found |= {"median": 1e3 * float(np.median(times)), "p95": 1e3 * float(np.quantile(times, 0.95))}
    print(json.dumps(found | {"largest": 1e3 * max(times), "queries": queries}))


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also one million regions")
    parser.add_argument("--rows", type=int, default=10_000, help="of the run that is reconciled")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        measure(args.measure, 200)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        reconcile(folder, args.rows)
        print(
            f"{'regions':>9} {'append/s':>9} {'file':>8} {'open':>7} {'median':>8} {'95 %':>8} {'max':>8} {'memory':>8}"
        )
        before = 0
        for size in (1000, 10_000, 100_000, *([1_000_000] if args.full else [])):
            path = folder / "large.memory"
            rate = (size - before) / load(path, size)
            before = size
            command = [sys.executable, __file__, "--measure", str(path)]
            one_core = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            done = subprocess.run(command, env=one_core, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            assert found["inside"] >= found["queries"] // 2
            print(
                f"{size:9} {rate:9.0f} {path.stat().st_size / 1e6:5.0f} MB {found['opened']:5.1f} s "
                f"{found['median']:5.1f} ms {found['p95']:5.1f} ms {found['largest']:5.1f} ms {found['mb']:5.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
