"""The public table of randomized smoothing on Fashion-MNIST, and this package's rows on the same test images.

    python benchmarks/public_table.py --list                 networks and rows, and how far they are
    python benchmarks/public_table.py                        all of them; --device cuda where there is a GPU
    python benchmarks/public_table.py --only catrs-1 --rows  only what is named; --train, --rows: only that part
    python benchmarks/public_table.py --tables --logs DIR    write docs/public-table.md and its figure from the counts

Networks of 357,000 parameters, by ``train``; all options were chosen on held-out training images. Rows: 1,000 test
images in two halves, 0, 20, 40, .. and 10, 30, 50, .., with 10,000 samples, or as many as the published rows have, or
at most so many, planned for each image. One row is of all 10,000 images in ten parts, planned, at most 10,000 samples.
Each part is a run folder, whose counts are kept beside this script in a small file. Ctrl-C stops in order, and the same
command goes on.
``--logs``: a folder with the public logs, tab-separated, named METHOD_SIGMA.tsv, to compare with image by image.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kept_counts
import paper_table
import public_rows
from ddsmoothing import L2Certificate, SmoothedClassifier, fit_offsets, load_model, search_sigma
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.campaigns.subset import subset_ids
from ddsmoothing.cli.interrupts import interruptible
from ddsmoothing.cli.progress import SampleProgress
from ddsmoothing.cli.train import asked_to_stop
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.models.by_sigma import BySigma
from ddsmoothing.plan import SearchPlan
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.tables import Table, markdown
from ddsmoothing.training import Catrs, Consistency, Macer, SmoothAdv, TrainConfig, train

ROOT = Path(__file__).parents[1]
COUNTS, PAGE = Path(__file__).parent / "results" / "public_table", ROOT / "docs" / "public-table.md"
PICTURE = ROOT / "docs" / "images" / "public-table.png"
SHOWN = {  # in the figure
    "catrs-conditional-longer-dds-mixed-100k": "ours: a sigma for each image, pairwise",
    "catrs-conditional-longer-at-1.2-100k": "ours: one sigma, pairwise",
}
N0, N, ALPHA = 100, 10_000, 0.001
HALVES: dict[str, dict[str, Any]] = {"": {"skip": 20}, "-second": {"skip": 10, "shard": (2, 2)}}  # of 1,000 images
TENTHS: dict[str, dict[str, Any]] = {f"-{i}of10": {"skip": 1, "shard": (i, 10)} for i in range(1, 11)}  # of all
N_MAX = 100_000  # of rows whose numbers of samples are planned, but of all images N
SIGMAS = (0.25, 0.5, 1.0)
LOW, HIGH = 0.2, 1.3  # of conditional networks
BEST = 1.2  # the one sigma of the stateless rows of a conditional network
SEARCH = SearchPlan(pilot=128, samples=(24, 48, 96, 192))
SIGMA0 = 0.25  # where the search fixes the class
SPLIT = 0.4  # below it a conditional Gaussian network serves, above it CAT-RS
COMMON: dict[str, Any] = {
    "model": "stride-cnn",
    "batch": 256,
    "lr": 0.1,
    "nesterov": True,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup": 1.5,
    "epochs": 17,
    "recompute_batchnorm": True,
    "channels_last": True,
    "precision": "bf16",
    "seed": 0,
}
TUNED = {"lr": 0.05, "warmup": 0.3, "epochs": 6}  # from the Gaussian network of the same sigma
CATRS_EPOCHS, CONDITIONAL_EPOCHS, LONGER_EPOCHS = 3, 8, 16


@dataclass(frozen=True)
class Row:
    """A certification run of a network or two.

    Attributes:
        network: below SPLIT it is the conditional Gaussian one, if ``mixed``.   sigma: None is data-dependent.
        offsets: class offsets are fitted on training images first.   planned: samples are planned for each image.
        full: as many samples as the published rows have.   every: all 10,000 images, not 1,000 of them.
    """

    network: str
    sigma: float | None
    mixed: bool = False
    offsets: bool = False
    planned: bool = False
    full: bool = False
    every: bool = False

    @property
    def name(self) -> str:
        """Of its run and its counts."""
        parts = [self.network, "dds" if self.sigma is None else f"at-{self.sigma:g}"]
        flags = {"mixed": self.mixed, "offsets": self.offsets, "100k": self.full, "all": self.every}
        return "-".join(parts + [flag for flag, there in flags.items() if there])

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """Which images each of its runs takes, by what is appended to the row's name."""
        return TENTHS if self.every else HALVES

    @property
    def samples(self) -> int:
        """The most fresh samples of an image."""
        return N_MAX if (self.planned or self.full) and not self.every else N


@dataclass(frozen=True)
class Network:
    """What is trained: ``method-sigma``, or ``method-conditional``.

    Attributes:
        options: of ``TrainConfig``.   parent: the network it starts from, and that is its teacher where one is needed.
        rows: runs with it.
    """

    name: str
    options: dict[str, Any]
    parent: str | None = None
    rows: tuple[Row, ...] = field(default=())

    def config(self, data: str, out: Path) -> TrainConfig:
        """All options, with files where they lie."""
        options = COMMON | self.options | {"data": data}
        if self.parent is not None:
            options["init"] = str(out / self.parent / "model.safetensors")
            if options["objective"] == "catrs":
                options["teacher"] = options["init"]
        return TrainConfig(**options)


def networks() -> dict[str, Network]:
    """All of them by name, parents first, the ones that matter most before others."""
    conditional = {"sigma": (LOW, HIGH), "condition": "channel"}
    catrs = {
        **TUNED,
        "epochs": CATRS_EPOCHS,
        "objective": "catrs",
        "copies": 4,
        "batch": 128,
        "catrs": Catrs(weight=2.0),
    }
    best, longer = "catrs-conditional", "catrs-conditional-longer"
    found = [Network("gaussian-conditional", conditional)]
    for s in SIGMAS:
        name = f"gaussian-{s:g}"
        rows = (Row(name, s), *((Row(name, s, offsets=True),) if s == SIGMAS[-1] else ()))
        found.append(Network(name, {"sigma": s}, rows=rows))
    rows = (
        Row(best, None, mixed=True, planned=True),
        Row(best, None, mixed=True, full=True),
        Row(best, BEST, planned=True),
        Row(best, BEST, full=True),
        Row(best, None),
        Row(best, BEST, offsets=True),
    )
    found.append(Network(best, catrs | conditional | {"epochs": CONDITIONAL_EPOCHS}, "gaussian-conditional", rows))
    rows = (
        Row(longer, None, mixed=True, full=True),
        Row(longer, None, mixed=True, planned=True, every=True),
        Row(longer, BEST, full=True),
    )
    found.append(Network(longer, catrs | conditional | {"epochs": LONGER_EPOCHS}, "gaussian-conditional", rows))
    for s in SIGMAS:
        name = f"catrs-{s:g}"
        found.append(Network(name, catrs | {"sigma": s}, f"gaussian-{s:g}", (Row(name, s),)))
    weights = dict(zip(SIGMAS, (20.0, 10.0, 10.0), strict=True))
    others: dict[str, Any] = {
        "smoothadv": lambda s: {"smoothadv": SmoothAdv(epsilon=1.0, steps=2, warmup=1)},
        "consistency": lambda s: {"copies": 2, "batch": 128, "consistency": Consistency(weight=weights[s])},
        "macer": lambda s: {"copies": 8, "batch": 128, "lr": 0.01, "macer": Macer(weight=6.0 if s == 1.0 else 12.0)},
    }
    for method, options in others.items():
        for s in SIGMAS:
            name = f"{method}-{s:g}"
            chosen = TUNED | options(s) | {"objective": method, "sigma": s}
            found.append(Network(name, chosen, f"gaussian-{s:g}", (Row(name, s),)))
    return {network.name: network for network in found}


@dataclass(frozen=True)
class Place:
    """Where networks and runs lie, what they see, and on which device.

    Attributes:
        quick: few images and samples, to see that all runs.
    """

    out: Path
    data: str
    device: torch.device
    quick: bool

    def split(self, name: str) -> Dataset:
        """A split of the data set."""
        return load_data(self.data, split=name)

    def train(self, network: Network) -> None:
        """Train it, as far as that is not done; KeyboardInterrupt where it was stopped."""
        config = network.config(self.data, self.out)
        if self.quick:
            config = config.model_copy(update={"epochs": 1, "warmup": 0.0, "batches": 3})
        total = config.epochs * config.samples(60_000)
        with asked_to_stop() as stop, SampleProgress(total, network.name, "samples") as progress:
            trained = train(config, self.out / network.name, device=str(self.device), progress=progress, stop=stop)
        if not trained.finished:
            raise KeyboardInterrupt

    def model(self, row: Row) -> torch.nn.Module:
        """The base classifier of a row."""
        own = load_model(str(self.out / row.network / "model.safetensors"))
        if row.mixed:
            below = load_model(str(self.out / "gaussian-conditional" / "model.safetensors"))
            own = BySigma([(SPLIT, below), (float("inf"), own)], sigma_range=(LOW, HIGH))
        return own.to(self.device)

    @interruptible()
    def certify(self, row: Row, part: str) -> None:
        """Certify a part of the row's images, as far as that is not done, and keep the counts."""
        n = 1000 if self.quick else row.samples
        images = {"skip": 2000} if self.quick else row.parts[part]
        samples = {"n_max": n} if row.planned else {"n0": N0, "n": n}
        rows = 16_384 if self.device.type == "cuda" else 512
        smoothed = SmoothedClassifier(
            self.model(row), L2Certificate(), num_classes=10, precision="bf16", channels_last=True, block_size=rows
        )
        offsets = self.offsets(row, smoothed) if row.offsets else None
        data, seed = self.split("test"), zlib.crc32(row.name.encode())  # no noise is used for two rows
        name, ids = row.name + part, subset_ids(data, **{"maximum": None, **images})
        policy = self.policy(row, smoothed, data, self.out / "sigma" / f"{name}.npy", ids, seed)
        with SampleProgress((N0 + n) * len(ids), name) as progress:
            run = certify_run(
                smoothed.with_offsets(offsets),
                data,
                CertifyRequest(policy, **samples, alpha=ALPHA, **images, seed=seed),
                self.out / "runs" / name,
                model_name=row.name,
                progress=progress,
            )
        searched = SEARCH.forwards if row.sigma is None else 0
        kept_counts.save(run, self.out / "counts" / f"{name}.npz", searched)

    def policy(
        self, row: Row, smoothed: SmoothedClassifier, data: Dataset, path: Path, ids: list[int], seed: int
    ) -> SigmaPolicy:
        """One sigma, or one for each image: searched for by more samples than the default, kept in a file."""
        if row.sigma is not None:
            return SigmaPolicy.fixed(row.sigma)
        if not path.exists():
            found = []
            for start in range(0, len(ids), 200):
                group = ids[start : start + 200]
                limits = {"sigma0": SIGMA0, "sigma_min": LOW, "sigma_max": HIGH, "n": N_MAX, "alpha": ALPHA}
                found.append(search_sigma(smoothed, data[group][0], **limits, plan=SEARCH, seed=seed, ids=group).sigma)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.concatenate(found))
        return SigmaPolicy.given(np.load(path, allow_pickle=False))

    def offsets(self, row: Row, smoothed: SmoothedClassifier) -> list[float]:
        """Class offsets, fitted on training images that were held out or not, never on test images."""
        x, y = self.split("train")[range(0, 60_000, 6000 if self.quick else 60)]
        found = fit_offsets(smoothed, x, y, sigma=row.sigma, n=200 if self.quick else 1000, seed=1)
        return list(found.offsets)


def left_to_do(
    place: Place, known: dict[str, Network], only: set[str], train_them: bool, certify_them: bool
) -> Iterator[tuple[Network, Row | None, str]]:
    """Trainings and parts of rows that are asked for and not done; a network's name stands for its rows too."""
    for network in known.values():
        asked = network.name in only
        if asked and train_them and not (place.out / network.name / "model.safetensors").exists():
            yield network, None, ""
        for row in network.rows if certify_them else ():
            for part in list(row.parts)[:1] if place.quick else row.parts:
                if (asked or row.name in only) and not (place.out / "counts" / f"{row.name}{part}.npz").exists():
                    yield network, row, part


def keep_seconds(place: Place, known: dict[str, Network]) -> Table:
    """Keep how long each finished training took; the table of all that are kept."""
    path = COUNTS / "training.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for name in known:
        if (place.out / name / "model.safetensors").exists():
            lines = (place.out / name / "metrics.jsonl").read_text().splitlines()
            seconds[name] = round(sum(json.loads(line)["seconds"] for line in lines), 1)
    path.write_text(json.dumps(seconds, indent=1) + "\n")
    rows = []
    for name, network in known.items():
        if name in seconds:
            before = network.parent
            both = seconds[name] + (0.0 if before is None else seconds[before])
            rows.append((name, before or "-", str(network.options.get("epochs", COMMON["epochs"])), f"{both:,.0f}"))
    columns = ("network", "starts from", "epochs", "seconds of one thread, those before it included")
    return Table(title="Training on a machine that had other work to do", columns=columns, rows=tuple(rows))


def write_page(place: Place, known: dict[str, Network], logs: Path | None) -> None:
    """Keep the finished rows' counts, and write the page's tables and its figure from all that are kept."""
    COUNTS.mkdir(parents=True, exist_ok=True)
    for path in (place.out / "counts").glob("*.npz"):
        shutil.copy(path, COUNTS)
    texts, whole = [markdown([keep_seconds(place, known)])], kept_counts.by_images(kept_rows(known))
    for ids, found in whole.items():
        mine = {}
        for name, one in found.items():
            mine |= {f"{name}, one-class": one.one_class().capped(), name: one.capped()}
        others = {} if logs is None else public_rows.public(logs, np.array(ids))
        texts.append(public_rows.text(mine, others))
        if others and found.keys() >= SHOWN.keys():
            public_rows.figure(mine, others, SHOWN).savefig(PICTURE, dpi=150)
    paper_table.write_page(PAGE, "\n".join(texts), public_rows.START, public_rows.END)


def kept_rows(known: dict[str, Network]) -> dict[str, kept_counts.Counts]:
    """The rows whose counts are kept, whole or of the first parts of the images."""
    found = {}
    for row in (row for network in known.values() for row in network.rows):
        paths = [COUNTS / f"{row.name}{part}.npz" for part in row.parts]
        if paths[0].exists():
            found[row.name] = kept_counts.joined([kept_counts.load(path) for path in paths if path.exists()])
    return found


@paper_table.ending
def main(argv: list[str] | None = None) -> int:
    """Train and certify, or show what there is, or write the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four idx files")
    parser.add_argument("--out", type=Path, default=Path("public-table-runs"), help="folder of networks and runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", help="names of networks or rows, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a small form, in another folder")
    parser.add_argument("--train", action="store_true", help="train only")
    parser.add_argument("--rows", action="store_true", help="certify only")
    parser.add_argument("--list", action="store_true", help="show networks and rows and how far they are")
    parser.add_argument("--tables", action="store_true", help="keep counts, write the page of the documentation")
    parser.add_argument("--logs", type=Path, help="a folder of METHOD_SIGMA.tsv, the public logs, to compare with")
    args = parser.parse_args(argv)
    known = networks()
    names = {*known, *(row.name for network in known.values() for row in network.rows)}
    only = names if args.only is None else set(args.only.split(","))
    if unknown := sorted(only - names):
        parser.error(f"there is no network and no row {unknown[0]!r}; --list shows their names")
    if args.tables and args.quick:
        parser.error("--tables is of the whole form; the small one only shows that everything runs")
    place = Place(
        out=args.out / ("quick" if args.quick else "full"),
        data=f"fashion-mnist:{args.data}",
        device=torch.device(args.device),
        quick=args.quick,
    )
    if args.tables:
        write_page(place, known, args.logs)
        return 0
    steps = (
        (f"train {network.name}", partial(place.train, network))
        if row is None
        else (f"certify {row.name}{part}", partial(place.certify, row, part))
        for network, row, part in left_to_do(place, known, only, not args.rows, not args.train)
    )
    paper_table.work_off(steps, listed=args.list)
    return 0


if __name__ == "__main__":
    sys.exit(main())
