"""Base classifiers that know sigma, beside one that does not, on Fashion-MNIST.

    python benchmarks/conditional.py --list      networks and rows, and how far they are
    python benchmarks/conditional.py             all of them; an hour or two of one thread; Ctrl-C, and go on
    python benchmarks/conditional.py --only few  only what is named: networks or parts, separated by commas
    python benchmarks/conditional.py --quick     a small form in minutes, with its tables
    python benchmarks/conditional.py --tables    keep finished rows' counts, write docs/conditional.md

Networks: the shipped CNN; a CNN that is not told sigma and one that is, trained alike; a small denoiser before a CNN
that never saw noise, and before the same CNN fine-tuned behind it. Parts: ``held-out`` (training images, on which the
model to ship was chosen), ``test`` (every 20th test image), and, since a denoiser costs so much, ``few`` (every 100th
at a small n, for all). Tables at equal time follow from the same counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import conditional_tables
import kept_counts
import paper_table
import public_rows
from conditional_tables import HELD_OUT, PARTS, Part, Row
from ddsmoothing import DenoisedClassifier, L2Certificate, SmoothedClassifier, load_denoiser, load_model
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.cli.interrupts import interruptible
from ddsmoothing.cli.progress import SampleProgress
from ddsmoothing.cli.train import asked_to_stop
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.training import TrainConfig, train
from ddsmoothing.training.batches import Batches
from ddsmoothing.training.distributed import joined

ROOT = Path(__file__).parents[1]
COUNTS, PAGE = Path(__file__).parent / "results" / "conditional", ROOT / "docs" / "conditional.md"
N0, ALPHA = 100, 0.001
LOW, HIGH, START = 0.12, 1.5, 0.424  # of training and of the search, for every network
SHIPPED = "fashion-mnist-cnn"
SECONDS = "seconds.json"
TIMED = 1500  # samples
PLAIN: dict[str, Any] = {
    "model": "medium-cnn",
    "sigma": (LOW, HIGH),
    "batch": 256,
    "lr": 0.2,
    "nesterov": True,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup": 2.0,
    "epochs": 24,
    "recompute_batchnorm": True,
    "channels_last": True,
    "precision": "bf16",
    "seed": 0,
}
TRAINED: dict[str, dict[str, Any]] = {
    "unconditional": PLAIN,
    "conditional": PLAIN | {"condition": "channel"},
    "clean": PLAIN | {"sigma": 0.01, "epochs": 4},
    "denoiser": {
        "objective": "denoiser",
        "model": "small-unet",
        "sigma": (LOW, HIGH),
        "batch": 128,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup": 0.5,
        "epochs": 3,
        "precision": "bf16",
        "seed": 0,
    },
    "tuned": PLAIN | {"freeze": "denoiser", "lr": 0.02, "warmup": 0.2, "epochs": 1, "recompute_batchnorm": False},
}
NEEDS = {"tuned": ("denoiser", "clean"), "denoised": ("denoiser", "clean")}


def rows() -> list[Row]:
    """All of them, in the order in which they are made: those that matter most before others."""
    at = (None, 0.25, 1.0, 0.5, 0.12)
    found = [Row(HELD_OUT, network, sigma) for network in ("conditional", "shipped") for sigma in at]
    found += [Row("test", network, sigma) for network in ("conditional", "shipped", "unconditional") for sigma in at]
    return [*found, *(Row("few", network, sigma) for network in conditional_tables.NAMES for sigma in at)]


@dataclass(frozen=True)
class Place:
    """Where networks and runs lie, what they see, and on which device.

    Attributes:
        quick: few images and samples, to see that all runs.
    """

    out: Path
    data: str
    device: str
    quick: bool

    def config(self, name: str) -> TrainConfig:
        """How a network is trained."""
        options = TRAINED[name] | {"data": self.data}
        if name == "tuned":
            options["denoiser"], options["init"] = (str(self.file(need)) for need in NEEDS[name])
        if self.quick:
            options |= {"epochs": 1, "warmup": 0.0, "batches": 3, "recompute_batchnorm": False}
        return TrainConfig(**options)

    def file(self, name: str) -> Path:
        """Of a trained network; of a fine-tuned one, its classifier."""
        return self.out / name / ("classifier.safetensors" if name == "tuned" else "model.safetensors")

    def train(self, name: str) -> None:
        """Train it, as far as that is not done; KeyboardInterrupt where it was stopped."""
        config = self.config(name)
        total = config.epochs * config.samples(60_000)
        with asked_to_stop() as stop, SampleProgress(total, name, "samples") as progress:
            trained = train(config, self.out / name, device=self.device, progress=progress, stop=stop)
        if not trained.finished:
            raise KeyboardInterrupt

    def smoothed(self, name: str) -> SmoothedClassifier:
        """A base classifier, ready to be certified."""
        denoised = name in NEEDS
        if name == "shipped":
            model = load_model(SHIPPED)
        elif denoised:
            denoiser, classifier = self.file("denoiser"), self.file("tuned" if name == "tuned" else "clean")
            model = DenoisedClassifier(load_denoiser(str(denoiser)), load_model(str(classifier))).eval()
        else:
            model = load_model(str(self.file(name)))
        many = 16_384 if self.device.startswith("cuda") else 512
        return SmoothedClassifier(
            model.to(self.device),
            L2Certificate(),
            num_classes=10,
            precision="bf16",
            channels_last=not denoised,  # a denoiser is faster without, on a CPU
            block_size=many,
        )

    def images(self, part: Part) -> Dataset:
        """What a part certifies: every so many-th image of this."""
        data = load_data(self.data, split="test" if part.name != HELD_OUT else "train")
        if part.name != HELD_OUT:
            return data
        config = TrainConfig(**PLAIN | {"data": self.data})
        with joined(torch.device("cpu")) as world:
            ids = Batches(config, int(config.seed or 0), data, world, 0).held_out.numpy()
        assert data.y is not None
        return Dataset(name=f"{data.name}, held out", split="train", x=data.x[ids], y=data.y[ids])

    @interruptible()
    def certify(self, row: Row) -> None:
        """Certify the row's images, as far as that is not done, and keep the counts."""
        part = PARTS[row.part]
        data = self.images(part)
        skip, n = (len(data) // 4, 200) if self.quick else (part.skip, part.n)
        policy = SigmaPolicy.search(START, LOW, HIGH) if row.sigma is None else SigmaPolicy.fixed(row.sigma)
        total = (policy.forwards + N0 + n) * len(range(0, len(data), skip))
        with SampleProgress(total, row.name) as progress:
            run = certify_run(
                self.smoothed(row.network),
                data,
                CertifyRequest(policy, n0=N0, n=n, alpha=ALPHA, skip=skip, seed=zlib.crc32(row.name.encode())),
                self.out / "runs" / row.name,
                model_name=row.network,
                progress=progress,
            )
        kept_counts.save(run, self.out / "counts" / f"{row.name}.npz", policy.forwards)

    def seconds(self, name: str) -> float:
        """Processor seconds a sample, noise and all, with one thread."""
        smoothed, x = self.smoothed(name), load_data(self.data, split="test")[:1][0]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            smoothed.certify(x, 0.5, n0=10, n=600, seed=0)
            start = time.process_time()
            smoothed.certify(x, 0.5, n0=10, n=TIMED, seed=1)
            return (time.process_time() - start) / (TIMED + 10)
        finally:
            torch.set_num_threads(before)

    def time_all(self, names: list[str]) -> None:
        """Seconds of the networks that are there and were not timed yet."""
        path = self.out / "counts" / SECONDS
        found = json.loads(path.read_text()) if path.exists() else {}
        for name in names:
            if name not in found and not any(step for step in left_to_do(self, [Row("test", name, 1.0)], True)):
                found[name] = self.seconds(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


def left_to_do(place: Place, asked: list[Row], train_only: bool) -> Iterator[str | Row]:
    """Names of networks to be trained, and rows, that are not done, in order."""
    said = set()
    for row in asked:
        own = [row.network] if row.network in TRAINED else []
        for name in [*NEEDS.get(row.network, ()), *own]:
            if name not in said and not place.file(name).exists():
                said.add(name)
                yield name
        if not train_only and not (place.out / "counts" / f"{row.name}.npz").exists():
            yield row


def keep(made: Path) -> None:
    """Take finished counts over to those that are kept."""
    COUNTS.mkdir(parents=True, exist_ok=True)
    for path in [*made.glob("*.npz"), *made.glob(SECONDS)]:
        shutil.copy(path, COUNTS)


@paper_table.ending
def main(argv: list[str] | None = None) -> int:
    """Train and certify, or show what there is, or write the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four idx files")
    parser.add_argument("--out", type=Path, default=Path("conditional-runs"), help="folder of networks and runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", help="networks, parts, PART-NETWORK, or whole names of rows, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a small form, in another folder")
    parser.add_argument("--train", action="store_true", help="train only")
    parser.add_argument("--list", action="store_true", help="show networks and rows that are not done")
    parser.add_argument("--tables", action="store_true", help="keep counts, write the page of the documentation")
    args = parser.parse_args(argv)
    asked = rows()
    if args.only is not None:
        names = set(args.only.split(","))
        asked = [row for row in asked if names & {row.part, row.network, f"{row.part}-{row.network}", row.name}]
        if not asked:
            known = [*PARTS, *dict.fromkeys(row.network for row in rows())]
            parser.error(f"there is no row of {args.only!r}; expected of {', '.join(known)}")
    if args.tables and args.quick:
        parser.error("--tables is of the whole form; the small one prints its own tables")
    folder, data = args.out / ("quick" if args.quick else "full"), f"fashion-mnist:{args.data}"
    place = Place(out=folder, data=data, device=args.device, quick=args.quick)
    if args.tables:
        keep(place.out / "counts")
        text = conditional_tables.text(rows(), COUNTS)
        paper_table.write_page(PAGE, text, conditional_tables.START, public_rows.END)
        return 0
    steps = (
        (f"train {step}", partial(place.train, step))
        if isinstance(step, str)
        else (f"certify {step.name}", partial(place.certify, step))
        for step in left_to_do(place, asked, args.train)
    )
    paper_table.work_off(steps, listed=args.list)
    if args.list:
        return 0
    place.time_all(list(dict.fromkeys(row.network for row in asked)))
    if args.quick and not args.train:
        print(conditional_tables.text(rows(), place.out / "counts"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
