"""What a GPU gives: are the integers the CPU's, what noise costs, samples a second against the bare forward pass.

    python benchmarks/gpu.py                     at most six minutes on one GPU; results/gpu-CARD.json after each stage
    python benchmarks/gpu.py --wheel FOLDER      where pip can fetch nothing: a folder with the wheel of 2021 in it
    python benchmarks/gpu.py --only noise,rates  these stages again
    python benchmarks/gpu.py --dry --out x.json  the same code on a CPU, kernels interpreted; figures of no meaning

A stage has a time limit of its own, is written at once, and stops none after it by failing. Bare: the same module on
inputs that are there, in the same form, called and as a CUDA graph, whichever is faster; ours draws noise, divides,
runs it and counts. Networks but the small one have random weights. Official: the code of 2021 on the same card, with
torch's own settings (TF32 convolutions), which ours does not allow in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if "--dry" in sys.argv:  # read when Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

import ddsmoothing as dds
import official_2021
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.device import DeviceCounter, captured
from ddsmoothing.counting.device_probe import probe_rows
from ddsmoothing.counting.engine import Engine
from ddsmoothing.inputs import Batch, prepare
from ddsmoothing.kernels import device_noise
from ddsmoothing.kernels.device_noise import DeviceNoise, Part, fault, to_device
from ddsmoothing.kernels.numerics import settled_numerics, told
from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.models.zoo import architecture
from ddsmoothing.noise import Gaussian, GridBlock, grid_table
from ddsmoothing.plan import Exact, Plan, SearchPlan
from ddsmoothing.streams import Stream, rows_per_block

TARGETS = {
    "noise ps": "at most 20 ps a coordinate",
    "share of bare": "at least .97 for both ResNets, .90 for the small CNN",
    "seconds": "at most 1.5 s for n = 100,000 of ResNet-18",
}
NETWORKS = {
    "small CNN": ("small-cnn", (1, 28, 28), 10, (4096, 16384)),
    "ResNet-18": ("cifar-resnet18", (3, 32, 32), 10, (2048,)),
    "ResNet-50": ("resnet50", (3, 224, 224), 1000, (256,)),
}
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16 channels_last": {"precision": "bf16", "channels_last": True},
    "bf16 channels_last compiled": {"precision": "bf16", "channels_last": True, "compiled": True},
}
SIGMA0, LOW, HIGH, CAP = 0.25, 0.0625, 1.0, 2.0


@dataclass
class Bench:
    """Where stages run, how long they may, and what they found.

    Attributes:
        dry: sizes of no meaning.   limit: seconds of all stages.   wheel: a folder with the wheel of 2021.
    """

    device: torch.device
    dry: bool
    out: Path
    limit: float
    wheel: Path | None
    found: dict[str, Any] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def stage(
        self, name: str, cap: float, work: Callable[[Bench, Callable[[], bool]], Iterator[dict[str, Any]]]
    ) -> None:
        """Run a stage that yields its findings one by one, until its time is up; write and print them."""
        begin = time.perf_counter()
        end = min(begin + cap, self.start + self.limit)
        result: dict[str, Any] = {}
        self.found[name] = result
        try:
            for some in work(self, lambda: time.perf_counter() < end):
                result.update(some)
                print(name, json.dumps(some), flush=True)
                if time.perf_counter() > end:
                    result["stopped"] = "its time was up"
                    break
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"[:500]
            result["where"] = traceback.format_exc()[-800:]
            print(name, "FAILED", result["error"], flush=True)
        result["seconds of stage"] = round(time.perf_counter() - begin, 1)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps({"targets": TARGETS, **self.found}, indent=1) + "\n")

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], least: float = 0.3) -> float:
        """Of one call, after one that only warms up."""
        work()
        self.sync()
        calls, start = 0, time.perf_counter()
        while not calls or (not self.dry and time.perf_counter() - start < least):
            work()
            calls += 1
            if calls % 4 == 0:
                self.sync()
        self.sync()
        return (time.perf_counter() - start) / calls

    def kernels(self, work: Callable[[], object]) -> dict[str, float]:
        """Seconds of each kernel and copy of one call, by name, as the card's own clock has them; nothing on a CPU."""
        if self.device.type != "cuda":
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            self.sync()
        found: dict[str, float] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                found[event.name[:40]] = found.get(event.name[:40], 0.0) + event.time_range.elapsed_us() * 1e-6
        return found

    def batch(self, shape: tuple[int, ...], count: int = 1) -> Batch:
        """Random inputs on the grid."""
        x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8))
        return prepare(x, list(range(count)), self.device)


def machine(bench: Bench, _: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """What it is run on."""
    yield {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
    }
    yield {"fault of noise on the device": fault(bench.device)}
    if bench.device.type == "cuda":
        yield {"card": torch.cuda.get_device_name(), "memory": torch.cuda.get_device_properties(0).total_memory}
    with settled_numerics(bench.device):
        yield {"numerics": told(bench.device)}


def parts_of(d: int, rows: int, count: int, sigmas: tuple[float, ...]) -> list[Part]:
    """Parts of several inputs, streams, blocks and sigmas, every third one short; words up to 2^64 - 1."""
    parts, row = [], 0
    for i in range(count):
        n = max(1, rows // 3) if i % 3 == 0 else rows
        words = (2**64 - 1 - i % 3, 2**63 + 7 * i, i % 5, (i, 2**64 - 1 - i)[i % 2])
        table = grid_table("gaussian", sigmas[i % len(sigmas)])
        parts.append(Part(words=words, table=table, centre=i % 4, row=row, rows=n))
        row += n
    return parts


def identity(bench: Bench, _: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """How many integers, and floats made of them, differ from the CPU's: all figures should be 0 but the last."""
    drawer, cells = DeviceNoise(bench.device), 0
    for d in (5, 17, 784) if bench.dry else (1, 5, 17, 784, 3072, 150_528):
        rows = 2 if bench.dry else min(rows_per_block(d), 20_000)
        parts = parts_of(d, rows, 4 if bench.dry else 24, (0.05, 0.25, 1.0, 12.0))
        centres = np.random.default_rng(d).integers(0, 256, (4, d)).astype(np.int16)
        wanted = np.empty((parts[-1].row + parts[-1].rows, d), dtype=np.int16)
        for part in parts:
            place = wanted[part.row : part.row + part.rows]
            GridBlock(part.table, part.words, d).fill(place)
            place += centres[part.centre]
        out = torch.empty(wanted.shape, dtype=torch.int16, device=bench.device)
        drawer.draw(out, to_device(centres, bench.device), parts)
        cells += wanted.size
        wrong = {f"d={d} int16": int((out.cpu().numpy() != wanted).sum())}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            floats = torch.empty(wanted.shape, dtype=dtype, device=bench.device)
            drawer.divide(floats, out, 255)
            exact = on_grid_values(torch.from_numpy(wanted), 255, torch.float32).to(dtype)
            wrong[f"d={d} {dtype}".replace("torch.", "")] = int((floats.cpu() != exact).sum())
        yield wrong
    x = torch.arange(256, device=bench.device).to(torch.float32)
    share = float((x / 255 != on_grid_values(x, 255, torch.float32)).float().mean())
    yield {"integers compared": cells, "share of pixels that tensor / 255 makes other floats": round(share, 3)}


def noise(bench: Bench, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Picoseconds a coordinate of the integers, of many sigmas at once, and of the division.

    Kernels alone, which is what the card spends, and as called, with the launches that this process prepares.
    """
    drawer = DeviceNoise(bench.device)
    for d in (17,) if bench.dry else (784, 3072, 150_528):
        rows = 2 if bench.dry else rows_per_block(d)
        count = 2 if bench.dry else 2**26 // (rows * d)
        centres = torch.zeros((4, d), dtype=torch.int16, device=bench.device)
        for label, sigmas in (("0.25", (0.25,)), ("1", (1.0,)), ("12", (12.0,)), ("50 sigmas", tuple(
            round(0.1 + 0.02 * i, 2) for i in range(2 if bench.dry else 50)))):  # fmt: skip
            tables = [grid_table("gaussian", sigmas[i % len(sigmas)]) for i in range(count)]
            parts = [
                Part(words=(7, i, 1, i), table=table, centre=i % 4, row=i * rows, rows=rows)
                for i, table in enumerate(tables)
            ]
            out = torch.empty((count * rows, d), dtype=torch.int16, device=bench.device)
            t = bench.seconds(lambda: drawer.draw(out, centres, parts))  # noqa: B023
            alone = bench.kernels(lambda: drawer.draw(out, centres, parts))  # noqa: B023
            total = sum(alone.values())
            yield {
                f"noise ps, d={d}, sigma {label}": {
                    "kernels": round(total / out.numel() * 1e12, 2),
                    "as called": round(t / out.numel() * 1e12, 2),
                    **{name: round(each / out.numel() * 1e12, 2) for name, each in alone.items() if each > total / 50},
                }
            }
            if not more():
                return
        floats = torch.empty(out.shape, dtype=torch.bfloat16, device=bench.device)
        t = sum(bench.kernels(lambda: drawer.divide(floats, out, 255)).values())  # noqa: B023
        yield {f"division to bf16 ps, d={d}": round(t / out.numel() * 1e12, 2)}
    block = np.empty((rows_per_block(784), 784), dtype=np.int16)
    t = bench.seconds(lambda: GridBlock(grid_table("gaussian", 0.25), (1, 2, 1, 3), 784).fill(block))
    yield {"noise of one CPU thread, ps, sigma 0.25": round(t / block.size * 1e12)}


def network(bench: Bench, name: str) -> tuple[torch.nn.Module, tuple[int, ...], int]:
    """A network on the device, the shape of its inputs and its classes."""
    arch, shape, classes, _ = NETWORKS[name]
    if name == "small CNN":
        return dds.load_model("fashion-mnist-cnn").to(bench.device), shape, classes
    torch.manual_seed(0)
    return architecture(arch).build(classes, shape).eval().to(bench.device), shape, classes


def bare(bench: Bench, engine: Engine, shape: tuple[int, ...], rows: int) -> float:
    """Samples a second of the forward pass alone: the faster of calling it and of its graph."""
    layout = torch.channels_last if engine.form.channels_last else torch.contiguous_format
    x = torch.rand(rows, *shape, device=bench.device).to(engine.form.dtype or torch.float32, memory_format=layout)
    with settled_numerics(bench.device), torch.inference_mode():
        seconds = bench.seconds(lambda: engine.model(x))
        if bench.device.type == "cuda":
            with suppress(RuntimeError):  # a model that cannot be captured
                replay, _ = captured(lambda: engine.model(x))
                seconds = min(seconds, bench.seconds(replay))
    return rows / seconds


def rates(bench: Bench, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Samples a second, ours and bare, for each network, form and number of rows."""
    compiled = "ResNet-18", {label: form for label, form in FORMS.items() if "compiled" in label}
    others = {label: form for label, form in FORMS.items() if "compiled" not in label}
    for name, forms in (("small CNN", others),) if bench.dry else (*((name, others) for name in NETWORKS), compiled):
        model, shape, classes = network(bench, name)
        batch = bench.batch(shape)
        for label, form in forms.items():
            engine = Engine(model, **form)
            engine.model.eval()
            for rows in (16,) if bench.dry else NETWORKS[name][3]:
                if not more():
                    return
                alone = bare(bench, engine, shape, rows)
                n = 40 if bench.dry else max(16 * rows, int(1.2 * alone))  # about a second
                counter = DeviceCounter(engine, Gaussian(), classes, rows)
                ask = [Request(row=0, sigma=0.25, stream=Stream.CERTIFY, n=n)]
                counter.counted(batch, [Request(row=0, sigma=0.25, stream=Stream.PILOT, n=min(n, 2 * rows))], 0)
                bench.sync()
                start = time.perf_counter()
                counter.counted(batch, ask, 0)
                ours = n / (time.perf_counter() - start)
                again = bare(bench, engine, shape, rows)  # a card that got warm is slower
                yield {
                    f"{name}, {label}, {rows} rows": {
                        "bare": [round(alone), round(again)],
                        "ours": round(ours),
                        "share of bare": round(2 * ours / (alone + again), 3),
                    }
                }
        if name == "ResNet-18" and forms is others and more():
            start = time.perf_counter()
            rows = probe_rows(Engine(model, precision="bf16", channels_last=True), Gaussian(), classes, batch)
            yield {"rows found by the probe, ResNet-18": rows, "seconds of it": round(time.perf_counter() - start, 1)}


def counts(bench: Bench, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Samples that change class with the block size, when run again, and against the CPU; the shipped network."""
    model, _, classes = network(bench, "small CNN")
    x, _ = dds.load_data("fashion-mnist-sample")[:4]
    n = 20 if bench.dry else 20_000
    asked = [Request(row=i, sigma=0.5, stream=Stream.CERTIFY, n=n) for i in range(len(x))]
    for label in ("fp32", "bf16"):
        seen: dict[str, Any] = {}
        for rows in (8, 16) if bench.dry else (64, 100, 256, 1000, 4096):
            counter = DeviceCounter(Engine(model, precision=label), Gaussian(), classes, rows)
            for again in ("", " again"):
                seen[f"{rows} rows{again}"] = counter.count(prepare(x, range(4), bench.device), asked, 7)
        if more():
            small = [Request(row=r.row, sigma=r.sigma, stream=r.stream, n=min(n, 4000)) for r in asked]
            engines = [Engine(m, precision=label) for m in (model, dds.load_model("fashion-mnist-cnn"))]
            ours, cpu = (
                DeviceCounter(engine, Gaussian(), classes, 256).count(prepare(x, range(4), device), small, 7)
                for engine, device in zip(engines, (bench.device, torch.device("cpu")), strict=True)
            )
            yield {f"{label}: samples of {4 * small[0].n} that the CPU answers otherwise": moved(ours, cpu)}
        first = next(iter(seen.values()))
        yield {f"{label}: samples of {4 * n}, {name}": moved(first, each) for name, each in seen.items()}


def moved(a: list[np.ndarray], b: list[np.ndarray]) -> int:
    """Samples that have another class, at least."""
    return sum(int(np.abs(one - other).sum()) // 2 for one, other in zip(a, b, strict=True))


def certificates(bench: Bench, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Seconds of one certificate of n = 100,000."""
    for name in ("small CNN",) if bench.dry else ("ResNet-18", "small CNN", "ResNet-50"):
        if not more():
            return
        model, shape, classes = network(bench, name)
        rows, n = (16, 60) if bench.dry else (NETWORKS[name][3][-1], 100_000)
        form = {"precision": "bf16", "channels_last": True}
        smoothed = ours_with(model, classes, rows, **form)
        x = bench.batch(shape).values.reshape(1, *shape).to(bench.device)
        smoothed.certify(x, 0.25, n0=min(100, n), n=min(n, 4 * rows), seed=1)
        start = time.perf_counter()
        smoothed.certify(x, 0.25, n0=min(100, n), n=n, seed=0)
        yield {f"{name}, n={n:,}, {rows} rows, seconds": round(time.perf_counter() - start, 3)}


def ours_with(model: torch.nn.Module, classes: int, rows: int, vote: str = "plurality", **form: Any) -> Any:
    """A smoothed classifier that counts in the loop for a device."""
    smoothed = dds.SmoothedClassifier(
        model, dds.L2Certificate(), num_classes=classes, block_size=rows, vote=vote, **form
    )
    return smoothed.with_executor(DeviceCounter(Engine(model, **form), Gaussian(), classes, rows))


def end_to_end(bench: Bench, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """From images to data-dependent certificates, ours and the official code of 2021; ACR with radii capped at 2."""
    model, _, classes = network(bench, "small CNN")
    data = dds.load_data("fashion-mnist-sample")
    x, labels = data[np.linspace(0, len(data) - 1, 2 if bench.dry else 50).astype(int)]
    x, y = x.to(bench.device), labels.numpy()
    rows, exact = (16, Exact(n0=20, n=60)) if bench.dry else (4096, Exact())
    plan = SearchPlan(pilot=16, widths=(3, 3), samples=(4, 8)) if bench.dry else None
    for name, sampler, vote, form in (
        ("plurality, exact, n = 100,000, fp32", exact, "plurality", {}),
        ("pairwise, exact, n = 100,000, bf16", exact, "pairwise", {"precision": "bf16"}),
        ("pairwise, plan, bf16", exact if bench.dry else Plan(price=0.2), "pairwise", {"precision": "bf16"}),
        ("pairwise, exact, n = 5,000, bf16", exact if bench.dry else Exact(n=5000), "pairwise", {"precision": "bf16"}),
    ):
        smoothed = ours_with(model, classes, rows, vote, **form)
        for timed in (True,) if bench.dry else (False, True):  # the first makes tables and compiles kernels
            start = time.perf_counter()
            limits = {"sigma0": SIGMA0, "sigma_min": LOW, "sigma_max": HIGH, "n": exact.n}
            sigma = dds.search_sigma(smoothed, x, **limits, seed=1 + timed, plan=plan)
            result = smoothed.certify(x, sigma, sampler=sampler, seed=2 + timed)
            seconds = (time.perf_counter() - start) / len(x)
        radii = np.where(result.prediction == y, np.minimum(result.radius, CAP), 0.0)
        yield {name: {"seconds an image": round(seconds, 4), "ACR": round(float(radii.mean()), 4)}}
    with tempfile.TemporaryDirectory() as folder:
        for wheel in bench.wheel.glob("*.whl") if bench.wheel else ():
            shutil.copy(wheel, folder)
        if not more() or (bench.dry and bench.wheel is None) or not official_2021.unpack(Path(folder)):
            yield {"official": "not run: no time or no wheel of 2021"}
            return
        yield official(bench, model, x, y, exact.n)


def official(bench: Bench, model: torch.nn.Module, x: torch.Tensor, y: np.ndarray, n: int) -> dict[str, Any]:
    """The code of 2021: 900 iterations of ascent with 100 samples, certification in batches of 1,000."""
    device, iterations = str(bench.device), 2 if bench.dry else 900
    batch = 16 if bench.dry else 1000
    certificate = official_2021.module("certificate").L2Certificate(len(x), device)
    net = torch.nn.Sequential(model, torch.nn.Softmax(1)).eval()
    bench.sync()
    start = time.perf_counter()
    theta = official_2021.module("optimization").optimize_isotropic_dds(
        net, x, certificate, 0.04, torch.full((len(x),), SIGMA0, device=device), iterations, 100, device
    )
    certificate = official_2021.module("certificate").L2Certificate(batch, device)
    middle, radii = time.perf_counter(), []
    for one, s, label in zip(x, theta.detach().clamp(LOW, HIGH), y, strict=True):
        smooth = official_2021.module("smooth").Smooth(model, 10, s, certificate)
        answer, gap = smooth.certify(one, min(100, n), n, 0.001, batch, bench.device)
        radii.append(min(float(s) * float(gap), CAP) if answer == label else 0.0)
    end = time.perf_counter()
    found = {"seconds an image": round((end - start) / len(x), 4), "ACR": round(float(np.mean(radii)), 4)}
    return {"official": {**found, "its certify, samples a second": round(len(x) * n / (end - middle))}}


STAGES = {
    "machine": (10, machine),
    "identity": (35, identity),
    "noise": (30, noise),
    "rates": (95, rates),
    "certificates": (20, certificates),
    "counts": (25, counts),
    "end to end": (60, end_to_end),
}


def main(argv: list[str] | None = None) -> int:
    """Run all stages; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on a CPU, in Triton's interpreter")
    parser.add_argument("--out", type=Path, help="the file of the results")
    parser.add_argument("--limit", type=float, default=345.0, help="seconds of all stages")
    parser.add_argument("--only", help="stages, separated by commas; the others' results in the file stay")
    parser.add_argument("--wheel", type=Path, help="a folder with the wheel of 2021")
    args = parser.parse_args(argv)
    if not args.dry and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry runs the same code on a CPU")
    device = torch.device("cpu" if args.dry else "cuda:0")
    card = "dry" if args.dry else "-".join(torch.cuda.get_device_name().lower().split())
    out = args.out or Path(__file__).parent / "results" / f"gpu-{card}.json"
    limit = 20 * args.limit if args.dry else args.limit
    bench = Bench(device=device, dry=args.dry, out=out, limit=limit, wheel=args.wheel)
    if args.dry:  # the interpreter takes as long for a small program as for a large one
        device_noise.COUNTERS, device_noise.LANES, device_noise.NUMBERS = 2048, 4096, 2**16
    asked = list(STAGES) if args.only is None else args.only.split(",")
    if unknown := [name for name in asked if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]!r}; expected of {', '.join(STAGES)}")
    if args.only is not None and out.exists():
        bench.found = {name: found for name, found in json.loads(out.read_text()).items() if name != "targets"}
    for name, (cap, work) in ((name, STAGES[name]) for name in asked):
        bench.stage(name, 20 * cap if args.dry else cap, work)
    print("\n".join(f"target, {name}: {target}" for name, target in TARGETS.items()))
    print(f"{time.perf_counter() - bench.start:.0f} s; written to {out}")
    return int(any("error" in stage for stage in bench.found.values()))


if __name__ == "__main__":
    sys.exit(main())
