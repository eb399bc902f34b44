"""Counts that ``stateless.py`` drew, kept in a small file for each network, split of the data and sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import RunError
from stateless_rules import Draws

FOLDER = Path(__file__).parent / "results" / "stateless"
GROUPS = (0, 1, 0, 0, 0, 1, 0, 1, 1, 1)  # the expert of each class: garments that are confused, and all else
ROUTED, GATE = (0.5, 1.2), 0.6  # sigmas of the experts behind the selector, and of its own noise
SIZES = {  # samples: a pilot and fresh parts, of which subsets have every multiple of 250
    "fit": (100, 200),
    "few": (100, 250, 250, 500, 1000),
    "many": (2000, 2000, 4000),  # after those
    "most": (8000, 16_000, 16_000),  # after all of these
}
LATER = ("many", "most")  # in files of their own


@dataclass(frozen=True, kw_only=True, eq=False)
class Duels:
    """Who beat whom, of B images and K classes.

    Attributes:
        id, label: ``(B,)``.   counts: ``(B, parts, K, K)`` on how many samples a beat b, votes on the diagonal.
    """

    id: NDArray[np.int64]
    label: NDArray[np.int64]
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.id)


def name_of(network: str, split: str, sigma: float, part: str) -> str:
    """Of the file without its suffix."""
    return f"{network}-{split}-{sigma:g}" + (f"-{part}" if part in LATER else "")


def add(path: Path, ids: list[int], label: NDArray[np.int64], duels: NDArray[np.int64]) -> None:
    """Keep the counts of more images: of each pair the wins of the first class, and the votes."""
    upper = np.triu_indices(duels.shape[-1])
    more = {
        "id": np.array(ids, np.uint16),
        "label": label.astype(np.uint8),
        "wins": duels[..., *upper].astype(np.uint16),
    }
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            more = {name: np.concatenate([file[name], values]) for name, values in more.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **more)
    part.replace(path)


def load(path: Path) -> Duels:
    """Read counts, in the order of the images; RunError where they are none."""
    with np.load(path, allow_pickle=False) as file:
        ids, label, wins = (file[name].astype(np.int64) for name in ("id", "label", "wins"))
    classes = int(np.sqrt(2 * wins.shape[-1]))
    counts = np.zeros((*wins.shape[:2], classes, classes), dtype=np.int64)
    upper, (a, b) = np.triu_indices(classes), np.triu_indices(classes, 1)
    counts[..., *upper] = wins
    votes = np.diagonal(counts, axis1=2, axis2=3)
    n = votes.sum(2)
    counts[..., b, a] = n[..., None] - counts[..., a, b]
    if (counts < votes[..., None]).any() or (counts < 0).any() or (n != n[:1]).any():
        raise RunError(f"{path} holds counts that do not add up; remake it.")
    order = np.argsort(ids)
    return Duels(id=ids[order], label=label[order], counts=counts[order])


def paths_of(network: str | Sequence[str], split: str, sigmas: Sequence[float], *parts: str) -> list[list[Path]]:
    """Files of a network, or of one at each sigma: for each sigma those of its parts."""
    networks = [network] * len(sigmas) if isinstance(network, str) else network
    return [
        [FOLDER / f"{name_of(name, split, sigma, part)}.npz" for part in parts]
        for name, sigma in zip(networks, sigmas, strict=True)
    ]


def draws(network: str | Sequence[str], split: str, sigmas: Sequence[float], *parts: str) -> Draws:
    """Counts on the images of which all parts are kept; of a network with fewer classes the others have none."""
    paths = paths_of(network, split, sigmas, *parts)
    found = [[load(path) for path in each] for each in paths]
    most = max(one.counts.shape[-1] for each in found for one in each)
    ids = found[0][0].id
    for one in (one for each in found for one in each):
        ids = ids[np.isin(ids, one.id)]
    rows = [[np.searchsorted(one.id, ids) for one in each] for each in found]
    counts = [
        np.concatenate([_padded(one.counts[at], most) for one, at in zip(each, places, strict=True)], 1)
        for each, places in zip(found, rows, strict=True)
    ]
    stacked, first = np.stack(counts, 1), found[0][0]
    seen = geometry()
    at = np.searchsorted(seen[f"{split}_id"], ids)
    return Draws(
        sigmas=tuple(sigmas),
        id=ids,
        label=first.label[rows[0][0]],
        pilots=stacked[:, :, 0],
        fresh=stacked[:, :, 1:],
        chosen=seen[f"{split}_chosen"][at],
        away=seen[f"{split}_away"][at],
        sizes=sum((SIZES[part] for part in parts), ())[1:],
    )


def _padded(counts: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    more = classes - counts.shape[-1]
    return np.pad(counts, ((0, 0), (0, 0), (0, more), (0, more)))


@lru_cache(maxsize=1)
def geometry() -> dict[str, NDArray[np.generic]]:
    """What images say without noise: ``near`` pairs of test images, and centres; see ``stateless.geometry``."""
    with np.load(FOLDER / "geometry.npz", allow_pickle=False) as file:
        return {name: file[name].astype(np.int64 if file[name].dtype.kind in "iu" else np.float64) for name in file}
