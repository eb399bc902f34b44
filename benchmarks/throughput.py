"""How near certification comes to the bare forward pass, and to other implementations: samples a second in one run.

    python benchmarks/throughput.py                    the small CNN, 28x28
    python benchmarks/throughput.py --resnet           also ResNet-18 at 3x32x32 (random weights, torchvision)

All contestants take turns, round after round, so that a change of the machine's speed meets all of them; medians and
the medians of the ratios of each round are printed. The bare forward pass is the same model at its best block of a
fixed list, on ready inputs, with as many passes side by side as certification uses. ``Smooth.certify`` is that of the
wheel ddsmoothing-python 1.0.0, its removed scipy import replaced; ART's is run if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import ddsmoothing as dds
import official_2021
from ddsmoothing.counting.engine import Engine
from ddsmoothing.devices import torch_threads, untouched

BLOCKS = (64, 128, 256, 512)
Run = Callable[[], int]


def bare(model: torch.nn.Module, shape: tuple[int, ...], rows: int, samples: int, **form: object) -> Run:
    """The forward pass alone, as many side by side as there are threads."""
    engine = Engine(model, **form)
    threads = torch.get_num_threads()
    layout = torch.channels_last if engine.form.channels_last else torch.contiguous_format
    x = torch.rand(rows, *shape).to(dtype=engine.form.dtype or torch.float32, memory_format=layout)
    passes = max(1, samples // rows // threads)

    def one(_: int) -> None:
        with torch.inference_mode():
            for _ in range(passes):
                engine.model(x).argmax(1)

    def run() -> int:
        with untouched(engine.model), torch_threads(1), ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(threads)))
        return passes * threads * rows

    return run


def ours(model: torch.nn.Module, x: torch.Tensor, rows: int, samples: int, **form: object) -> Run:
    """Our certification of a few inputs."""
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, block_size=rows, **form)
    n = samples // len(x) - 100
    return lambda: int(smoothed.certify(x, 0.25, n0=100, n=n, seed=0).samples.sum())


def official(model: torch.nn.Module, x: torch.Tensor, samples: int, folder: Path) -> Run | None:
    """``Smooth.certify`` of 2021, or None where its wheel cannot be had."""
    if not official_2021.unpack(folder):
        return None
    certificate = official_2021.module("certificate").L2Certificate(1000, "cpu")
    classifier = official_2021.module("smooth").Smooth(model, 10, 0.25, certificate)
    n = samples // len(x) - 100

    def run() -> int:
        for one in x:
            classifier.certify(one, 100, n, 0.001, 1000, torch.device("cpu"))
        return len(x) * (n + 100)

    return run


def art(model: torch.nn.Module, x: torch.Tensor, samples: int) -> Run | None:
    """ART's PyTorchRandomizedSmoothing, or None where it is not installed."""
    if importlib.util.find_spec("art") is None:
        return None
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smoothing = PyTorchRandomizedSmoothing(
        model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=x.shape[1:], nb_classes=10, scale=0.25
    )
    n = samples // len(x)

    def run() -> int:
        smoothing.certify(x.numpy(), n=n)
        return n * len(x)

    return run


def compare(contestants: dict[str, Run], rounds: int) -> None:
    """Run in turns; print medians and, against the first contestant, medians of the ratios of each round."""
    for run in contestants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            samples = run()
            rates[name].append(samples / (time.perf_counter() - start))
    first = np.array(next(iter(rates.values())))
    for name, found in rates.items():
        ratio = np.median(np.array(found) / first)
        print(f"  {name:34} {np.median(found):9,.0f} samples/s   {ratio:6.2f} of bare", flush=True)


def best_block(model: torch.nn.Module, shape: tuple[int, ...], samples: int, **form: object) -> int:
    """The block with the highest bare rate."""
    rates = []
    for rows in BLOCKS:
        run = bare(model, shape, rows, samples, **form)
        run()
        start = time.perf_counter()
        rates.append(run() / (time.perf_counter() - start))
    return BLOCKS[int(np.argmax(rates))]


def main() -> None:
    """Print a table for each model and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resnet", action="store_true", help="also ResNet-18 at 3x32x32")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    x, _ = dds.load_data("fashion-mnist-sample")[:8]
    model = dds.load_model("fashion-mnist-cnn")
    print(f"{torch.get_num_threads()} threads; torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        old = official(model, x, 16_000, Path(folder))
        for form in ({}, {"channels_last": True}, {"precision": "bf16"}, {"precision": "bf16", "channels_last": True}):
            rows = best_block(model, (1, 28, 28), 20_000, **form)
            print(f"small CNN, {form or 'fp32'}, block {rows}")
            smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, **form)
            own = smoothed.probe_block_size(smoothed.prepare(x))
            contestants = {"bare forward pass": bare(model, (1, 28, 28), rows, 40_000, **form)}
            contestants[f"ours, block {own}"] = ours(model, x, own, 40_000, **form)
            if not form:
                others = {"official Smooth.certify, block 1000": old, "ART": art(model, x, 8_000)}
                contestants |= {name: run for name, run in others.items() if run is not None}
            compare(contestants, args.rounds)
    if args.resnet:
        resnet(args.rounds)


def resnet(rounds: int) -> None:
    """ResNet-18 with the 3x3 stem of CIFAR."""
    from torchvision.models import resnet18

    net = resnet18(num_classes=10).eval()
    net.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = torch.nn.Identity()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for form in ({}, {"precision": "bf16", "channels_last": True}):
        rows = best_block(net, (3, 32, 32), 512, **form)
        print(f"ResNet-18, {form or 'fp32'}, block {rows}")
        samples = 8 * rows
        contestants = {
            "bare": bare(net, x.shape[1:], rows, samples, **form),
            "ours": ours(net, x, rows, samples, **form),
        }
        compare(contestants, rounds)


if __name__ == "__main__":
    main()
