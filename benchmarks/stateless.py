"""Counts for stateless rules on Fashion-MNIST: one draw that every rule is read from, and the page that follows.

    python benchmarks/stateless.py --list      what is counted, and how far it is
    python benchmarks/stateless.py             count what is missing; --only shipped-test: only what begins so
    python benchmarks/stateless.py --tables    write docs/stateless.md's tables and its figure from the kept counts

Test images 5, 15, 25, .. (no design was chosen on them), and training images on which everything is fitted and chosen.
At each sigma who beats whom is counted on a pilot that chooses and on parts of growing size, so that rules with several
sigmas take as many samples in all as one sigma does: 220 million samples, an hour and a half of a quiet core. Ctrl-C
stops in order, and the same command goes on.
``--networks``: the folder where ``public_table.py`` trained the Gaussian experts; the selector is trained there.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import paper_table
import stateless_counts as kept
import stateless_tables
from ddsmoothing import L2Certificate, SmoothedClassifier, load_data, load_model
from ddsmoothing.claims.centres import Centres
from ddsmoothing.cli.interrupts import asked_to_stop, interruptible
from ddsmoothing.cli.progress import SampleProgress
from ddsmoothing.counting.contract import DUELS, Request
from ddsmoothing.data import Dataset
from ddsmoothing.streams import Blocks, Role
from ddsmoothing.training import PRESETS, TrainConfig, train
from ddsmoothing.training.predictions import make_predictions

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "stateless.md", ROOT / "docs" / "images" / "stateless.png"
K, GROUP = 10, 50  # classes; images whose counts are kept together
TRAINING = range(1, 60_000, 6)  # images that the centres are means of
NEAR = 6.5  # more than the sum of two radii of the rows with a memory
SLOTS = (0.25, 0.5, 0.7, 1.0, 1.2, 1.5, 2.0, 0.85, kept.GATE)  # each sigma's noise is its own
TRIED, CONDITIONAL = SLOTS[:-1], (0.25, 0.5, 1.0, 1.2)
MANY, MOST = (0.5, 1.0, 1.2, 0.25, 0.7, 0.85, 1.5), (0.5, 1.0, 1.2)  # of the shipped CNN with more samples
SHIPPED = {"shipped": "fashion-mnist-cnn", "conditional": "fashion-mnist-conditional"}
EXPERTS = {f"gaussian-{sigma:g}": sigma for sigma in (0.25, 0.5, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Counts of one network at one sigma.

    Attributes:
        split: ``train`` or ``test``.   images: how many.   part: which sizes of ``stateless_counts.SIZES``.
    """

    network: str
    split: str
    sigma: float
    images: int
    part: str

    @property
    def name(self) -> str:
        """Of its file."""
        return kept.name_of(self.network, self.split, self.sigma, self.part)

    @property
    def ids(self) -> list[int]:
        """Positions in the split: of test images 5, 15, .. or some of these, evenly; every second one comes first."""
        first, count = (5, 10_000) if self.split == "test" else (0, 60_000)
        step = count // self.images if self.split == "train" else 10 * (1000 // self.images)
        found = [first + step * i for i in range(self.images)]
        return found[0::2] + found[1::2]


def jobs() -> list[Job]:
    """All of them, the ones that matter most first."""

    def some(network: str, split: str, sigmas: tuple[float, ...], images: int, part: str) -> list[Job]:
        return [Job(network=network, split=split, sigma=s, images=images, part=part) for s in sigmas]

    found = some("shipped", "train", TRIED, 1200, "fit")
    found += some("shipped", "test", TRIED, 1000, "few")
    found += some("selector", "train", (kept.GATE,), 1200, "fit")
    found += some("selector", "test", (kept.GATE,), 1000, "few")
    found += [job for name, s in EXPERTS.items() for job in some(name, "train", (s,), 800, "fit")]
    found += [job for name, s in EXPERTS.items() for job in some(name, "test", (s,), 1000, "few")]
    found += some("conditional", "train", CONDITIONAL, 600, "fit")
    found += some("conditional", "test", CONDITIONAL, 500, "few")
    found += some("shipped", "test", MANY, 1000, "many") + some("selector", "test", (kept.GATE,), 1000, "many")
    found += [job for name, s in EXPERTS.items() for job in some(name, "test", (s,), 500, "many")]
    found += some("conditional", "test", CONDITIONAL, 250, "many")
    return found + some("shipped", "test", MOST, 500, "most") + some("selector", "test", (kept.GATE,), 500, "most")


def requests_of(job: Job, d: int, row: int) -> Iterator[Request]:
    """What is counted on one image: a pilot and parts of fresh samples; no noise is used twice."""
    blocks, slot = Blocks(d), SLOTS.index(job.sigma)
    roles = [Role.CERTIFY] * len(kept.SIZES[job.part])
    if job.part in kept.LATER:  # after the parts that are counted already
        before = kept.LATER[: kept.LATER.index(job.part)]
        for n in sum((kept.SIZES[part] for part in before), kept.SIZES["few"][1:]):
            blocks.take(Role.CERTIFY, n, slot)
    else:
        roles[0] = Role.PILOT
    for role, n in zip(roles, kept.SIZES[job.part], strict=True):
        yield Request(row=row, sigma=job.sigma, stream=role, n=n, first_block=blocks.take(role, n, slot), tally=DUELS)


def counted(job: Job, smoothed: SmoothedClassifier, data: Dataset, ids: list[int]) -> NDArray[np.int64]:
    """``(B, parts, K, K)`` duels of these images, votes on the diagonal."""
    batch = smoothed.prepare(data[ids][0], ids)
    asked = [request for row in range(len(ids)) for request in requests_of(job, batch.d, row)]
    seed = zlib.crc32(f"{job.network}-{job.split}".encode())
    duels = np.stack(smoothed.count(batch, asked, seed))
    return duels.reshape(len(ids), -1, *duels.shape[1:])


@dataclass(frozen=True)
class Place:
    """Where data, networks and counts lie."""

    data: str
    networks: Path
    counts: Path

    def smoothed(self, network: str) -> SmoothedClassifier:
        """A network by name: one that is shipped, the selector, or an expert that was trained elsewhere."""
        if network == "selector":
            self._train_selector()
        model = load_model(SHIPPED.get(network) or str(self.networks / network / "model.safetensors"))
        more = {"precision": "bf16", "channels_last": True, "block_size": 1024}
        classes = len(kept.ROUTED) if network == "selector" else K
        return SmoothedClassifier(model, L2Certificate(), num_classes=classes, **more)

    def _train_selector(self) -> None:
        """Train the gate that picks an expert, on the radii that the experts promise on training images."""
        folder, radii = self.networks / "selector", self.networks / "selector-radii"
        data, base = load_data(self.data, split="train"), SHIPPED["shipped"]
        options = PRESETS["fashion-mnist-selector"] | {"data": self.data, "sigma": kept.GATE, "seed": 0}
        config = TrainConfig(**options, predictions=str(radii))
        with asked_to_stop() as stop:
            with SampleProgress(len(data), "radii of the experts", "inputs") as progress:
                made = make_predictions(
                    load_model(base),
                    data,
                    radii,
                    classes=K,
                    sigma=kept.ROUTED,
                    n=64,
                    seed=0,
                    progress=progress,
                    stop=stop,
                )
            with SampleProgress(config.epochs * config.samples(len(data)), "selector", "samples") as progress:
                done = made and train(config, folder, device="cpu", progress=progress, stop=stop).finished
        if not done:
            raise KeyboardInterrupt

    def left(self, job: Job) -> list[int]:
        """Images that are not counted yet."""
        path = self.counts / f"{job.name}.npz"
        there = set(kept.load(path).id.tolist()) if path.exists() else set()
        return [i for i in job.ids if i not in there]

    def count(self, job: Job) -> None:
        """Count what is missing of a job, a group of images at a time."""
        data, smoothed = load_data(self.data, split=job.split), self.smoothed(job.network)
        while ids := self.left(job)[:GROUP]:
            duels = counted(job, smoothed, data, ids)
            kept.add(self.counts / f"{job.name}.npz", ids, data[ids][1].numpy(), duels)
            print(f"{job.name}: image {ids[-1]}", flush=True)


def geometry(data: str) -> dict[str, NDArray[np.generic]]:
    """What images say without noise.

    Of test images the pairs nearer than NEAR, which a memory may have to look at: ``near`` two positions in the split
    and the squared distance, in whole steps of 1/255. Of every image that is counted the nearest of two centres, the
    means of the training images of each group, and how far the other one is from being nearer.
    """
    splits = {name: load_data(data, split=name) for name in ("train", "test")}
    ids = {name: sorted({i for job in jobs() if job.split == name for i in job.ids}) for name in splits}
    gate, found = Centres(points=centres_of(data)), {}
    for name, split in splits.items():
        whole = _whole(split[ids[name]][0])
        seen = [gate.seen(one, "l2") for one in whole]
        found |= {
            f"{name}_id": np.array(ids[name], np.uint16),
            f"{name}_chosen": np.array([one.chosen for one in seen], np.uint8),
            f"{name}_away": np.array([one.away for one in seen]),
        }
    products = (whole @ whole.T).astype(np.int64)
    norms = np.diagonal(products)
    squares = norms[:, None] + norms[None, :] - 2 * products
    first, second = np.nonzero(np.triu(squares < (255 * NEAR) ** 2, 1))
    at = np.array(ids["test"])
    found["near"] = np.stack([at[first], at[second], squares[first, second]], 1).astype(np.int32)
    return found


def centres_of(data: str) -> NDArray[np.int64]:
    """``(2, d)`` the means of the training images of each group, in whole steps of 1/255."""
    x, y = load_data(data, split="train")[TRAINING]
    group = np.array(kept.GROUPS)[y.numpy()]
    return np.stack([np.rint(_whole(x)[group == e].mean(0)).astype(np.int64) for e in (0, 1)])


def _whole(x: torch.Tensor) -> NDArray[np.int64]:
    """``(B, d)`` in steps of 1/255."""
    return np.rint(x.flatten(1).double().numpy() * 255.0).astype(np.int64)


@paper_table.ending
def main(argv: list[str] | None = None) -> int:
    """Count, or show how far that is, or write the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--networks", type=Path, default=Path("public-table-runs/full"), help="of the Gaussian experts")
    parser.add_argument("--only", default="", help="the beginning of the names of what is counted")
    parser.add_argument("--list", action="store_true", help="show what is counted and how much is left")
    parser.add_argument("--tables", action="store_true", help="write the page from the kept counts")
    args = parser.parse_args(argv)
    place = Place(args.data, args.networks, kept.FOLDER)
    chosen = [job for job in jobs() if job.name.startswith(args.only)]
    if not chosen:
        parser.error(f"nothing that is counted begins with {args.only!r}; --list shows the names")
    if args.list:
        for job in chosen:
            print(f"{job.name}: {len(place.left(job))} of {job.images} images left")
        return 0
    if args.tables:
        sections = stateless_tables.made()
        paper_table.write_page(PAGE, stateless_tables.text(sections), stateless_tables.START, stateless_tables.END)
        stateless_tables.figure(sections).savefig(PICTURE, dpi=110)
        return 0
    torch.set_num_threads(1)
    with interruptible():
        if not (place.counts / "geometry.npz").exists():
            place.counts.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(place.counts / "geometry.npz", **geometry(args.data))
        for job in chosen:
            place.count(job)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
