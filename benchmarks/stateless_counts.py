"""Counts that ``stateless.py`` drew, kept in a small file for each network, split of the data and sigma."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import RunError

FOLDER = Path(__file__).parent / "results" / "stateless"
SIZES = {  # samples: a pilot and fresh parts, of which subsets have every multiple of 250
    "fit": (100, 200),
    "few": (100, 250, 250, 500, 1000),
    "many": (2000, 4000),
}


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
    return f"{network}-{split}-{sigma:g}" + ("-many" if part == "many" else "")



def add(path: Path, ids: list[int], label: NDArray[np.int64], duels: NDArray[np.int64]) -> None:
    """Keep the counts of more images: of each pair the wins of the first class, and the votes."""
    upper = np.triu_indices(duels.shape[-1])
    more = {"id": np.array(ids, np.uint16), "label": label.astype(np.uint8), "wins": duels[..., *upper].astype(np.uint16)}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            more = {name: np.concatenate([file[name], values]) for name, values in more.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **more)
    part.replace(path)


def load(path: Path) -> Duels:
    """Read counts; RunError where they are none."""
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
    return Duels(id=ids, label=label, counts=counts)
