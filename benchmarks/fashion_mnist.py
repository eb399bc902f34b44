"""The table of data-dependent smoothing on Fashion-MNIST: three ways of training, fixed against data-dependent sigma.

    python benchmarks/fashion_mnist.py --list     the cells and how far they are
    python benchmarks/fashion_mnist.py            all cells; about an hour of two cores, in as many sittings as you like
    python benchmarks/fashion_mnist.py --quick    one sigma, 10,000 training and 100 test images; under ten minutes
    python benchmarks/fashion_mnist.py --tables   keep the finished rows' counts beside this script, and write
                                                  docs/fashion-mnist.md from all counts that are kept

A cell is a training run or a certification run. Ctrl-C stops in order and the same command goes on. A second process
with the same command takes the networks that the first one has not begun. Methods: Gaussian noise (Cohen), SmoothAdv,
MACER. ``plain``: trained and certified with one sigma. ``DS``: the plain network, sigma chosen for each image. ``DS2``:
sigma chosen for each image in training too. One more network is trained with a range of sigmas.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paper_table
from ddsmoothing import L2Certificate, SmoothedClassifier
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.cli.interrupts import interruptible
from ddsmoothing.cli.progress import SampleProgress
from ddsmoothing.cli.train import asked_to_stop
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.errors import RunError
from ddsmoothing.runs.lock import Lock
from ddsmoothing.runs.store import finished_rows
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.training import DataDependent, SmoothAdv, TrainConfig, train
from paper_table import MIXED, Row

ROOT = Path(__file__).parents[1]
COUNTS, PAGE = Path(__file__).parent / "results" / "fashion_mnist", ROOT / "docs" / "fashion-mnist.md"
N0, N, ALPHA, IMAGES = 100, 6000, 0.001, 500
SIGMAS, MANY, QUICK_SIGMA = (0.25, 0.5, 1.0), (0.12, 0.25, 0.5, 1.0), 0.5
QUICK_TRAINING, QUICK_IMAGES, QUICK_EPOCHS = 10_000, 100, 3  # times as many epochs
METHODS: dict[str, dict[str, Any]] = {
    "gaussian": {"epochs": 8},
    MIXED: {"epochs": 12, "sigma": (MANY[0], MANY[-1])},
    "smoothadv": {"objective": "smoothadv", "epochs": 4, "smoothadv": SmoothAdv(epsilon=0.25, steps=2, warmup=1)},
    "macer": {"objective": "macer", "epochs": 3, "copies": 4, "lr": 0.05},
}
MOVES = {"step": 0.05, "samples": 1, "steps": 1}  # of sigma in training, after a quarter of the epochs
COST = {"gaussian": 5, MIXED: 5, "smoothadv": 25, "macer": 30}  # of a training image, about, in forward passes
ASCENT_COST = 5


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to be trained, and the rows of the table that it is certified for.

    Attributes:
        sigma: of training, None for a range.   moving: sigma moves in training.   quick: on few images.
    """

    method: str
    sigma: float | None
    moving: bool
    quick: bool

    @property
    def name(self) -> str:
        """Of its folder."""
        sigma = "" if self.sigma is None else f"-{self.sigma:g}"
        return f"{self.method}{sigma}{'-dds' if self.moving else ''}"

    @property
    def config(self) -> TrainConfig:
        """How it is trained."""
        options = {"sigma": self.sigma} | METHODS[self.method]
        options["epochs"] *= QUICK_EPOCHS if self.quick else 1
        moves = DataDependent(switch_epoch=options["epochs"] // 4, **MOVES) if self.moving else None
        common = {"batch": 256, "lr": 0.2, "nesterov": True, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 1.0}
        return TrainConfig(
            data="fashion-mnist",
            model="small-cnn",
            **common | options,
            channels_last=True,
            maximum=QUICK_TRAINING if self.quick else None,
            seed=0,
            data_dependent=moves,
        )

    @property
    def rows(self) -> list[Row]:
        """Of the table."""
        if self.sigma is None:
            return [*(Row(self.method, "plain", sigma) for sigma in MANY), Row(self.method, "DS", None)]
        kinds = ("DS2",) if self.moving else ("plain", "DS")
        return [Row(self.method, kind, self.sigma) for kind in kinds]

    def policy(self, row: Row) -> SigmaPolicy:
        """Where a row's sigma comes from: the search starts at the training sigma, or amid the range."""
        if row.kind == "plain":
            return SigmaPolicy.fixed(row.sigma)
        low, high = self.config.sigma_bounds
        return SigmaPolicy.search(self.config.sigma_start, low, high)


def networks(quick: bool) -> list[Network]:
    """All of them, in the order in which they are made: cheap ones first, then those near the middle sigma."""
    sigmas = (QUICK_SIGMA,) if quick else SIGMAS
    found = []
    for method, options in METHODS.items():
        if "sigma" not in options:
            found += [Network(method=method, sigma=s, moving=m, quick=quick) for s in sigmas for m in (False, True)]
        elif not quick:
            found.append(Network(method=method, sigma=None, moving=False, quick=quick))
    middle = QUICK_SIGMA
    return sorted(found, key=lambda one: (COST[one.method] > COST["gaussian"], abs((one.sigma or middle) - middle)))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A training run (row None) or a certification run.

    Attributes:
        done, total: epochs or images.   cost: of all of it, in forward passes.
    """

    network: Network
    row: Row | None
    done: int
    total: int
    cost: int

    @property
    def left(self) -> int:
        """Forward passes still to be made, about."""
        return self.cost * (self.total - self.done) // self.total


def cells_of(network: Network, out: Path) -> Iterator[Cell]:
    """The cells of a network: its training, then its rows."""
    config, folder = network.config, out / network.name
    metrics = folder / "train" / "metrics.jsonl"
    epochs = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    cost = config.samples(60_000) * (COST[network.method] + ASCENT_COST * network.moving)
    yield Cell(network=network, row=None, done=epochs, total=config.epochs, cost=cost * config.epochs)
    images = QUICK_IMAGES if network.quick else IMAGES
    for row in network.rows:
        cost = images * (N0 + N + network.policy(row).forwards)
        yield Cell(network=network, row=row, done=finished_rows(folder / row.name), total=images, cost=cost)


def show(cells: list[Cell]) -> None:
    """Print the cells and how far they are."""
    for cell in cells:
        what, unit = ("training", "epochs") if cell.row is None else (f"certify {cell.row.name}", "images")
        state = "finished" if cell.done == cell.total else f"{cell.done} of {cell.total} {unit}"
        print(f"{cell.network.name:20} {what:28} {state if cell.done else 'not run'}")


def work(network: Network, out: Path, counts: Path, data: dict[str, Dataset], progress: SampleProgress) -> None:
    """Train a network and certify its rows, as far as that is not done; KeyboardInterrupt where it was stopped."""
    folder, weight = out / network.name, COST[network.method] + ASCENT_COST * network.moving
    with asked_to_stop() as stop:
        trained = train(
            network.config,
            folder / "train",
            data=data["train"],
            progress=lambda samples: progress(weight * samples),
            stop=stop,
        )
    if not trained.finished:
        raise KeyboardInterrupt
    smoothed = SmoothedClassifier(trained.model, L2Certificate(), num_classes=10, precision="bf16", block_size=512)
    for row in network.rows:
        with interruptible():
            run = certify_run(
                smoothed,
                data["test"],
                CertifyRequest(
                    network.policy(row),
                    n0=N0,
                    n=N,
                    alpha=ALPHA,
                    skip=len(data["test"]) // (QUICK_IMAGES if network.quick else IMAGES),
                    seed=zlib.crc32(row.name.encode()),
                ),
                folder / row.name,
                model_name=network.name,
                progress=progress,
            )
        paper_table.save_counts(run, trained, counts / f"{row.name}.npz")


def work_on_all(todo: list[Network], out: Path, counts: Path, data: dict[str, Dataset]) -> None:
    """Everything that no other process works on."""
    left = sum(cell.left for network in todo for cell in cells_of(network, out))
    with SampleProgress(max(1, left), "all cells", "passes") as progress:
        for network in todo:
            kept = all((counts / f"{row.name}.npz").exists() for row in network.rows)
            if kept and not any(cell.left for cell in cells_of(network, out)):
                continue
            (out / network.name).mkdir(parents=True, exist_ok=True)
            try:
                lock = Lock(out / network.name)
            except RunError:
                print(f"{network.name}: another process is at work on it", flush=True)
                continue
            try:
                work(network, out, counts, data, progress)
            finally:
                lock.release()
            print(f"{network.name}: finished", flush=True)


@paper_table.ending
def main(argv: list[str] | None = None) -> int:
    """Work on the cells, or show what there is; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four idx files")
    parser.add_argument("--out", type=Path, default=Path("fashion-mnist-runs"), help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="a small form")
    parser.add_argument("--list", action="store_true", help="show the cells and how far they are")
    parser.add_argument("--tables", action="store_true", help="keep counts, write the page of the documentation")
    args = parser.parse_args(argv)
    todo, out = networks(args.quick), args.out / ("quick" if args.quick else "full")
    rows, counts = [row for network in todo for row in network.rows], out / "counts"
    if args.tables and args.quick:
        parser.error("--tables is of all cells; the small form prints its own tables when it ends")
    if args.list:
        show([cell for network in todo for cell in cells_of(network, out)])
        return 0
    if args.tables:
        COUNTS.mkdir(parents=True, exist_ok=True)
        for path in counts.glob("*.npz"):
            shutil.copy(path, COUNTS)
        paper_table.write_page(PAGE, paper_table.tables(rows, COUNTS))
        return 0
    data = {split: load_data(f"fashion-mnist:{args.data}", split=split) for split in ("train", "test")}
    work_on_all(todo, out, counts, data)
    print(paper_table.tables(rows, counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
