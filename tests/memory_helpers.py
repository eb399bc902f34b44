"""What memory tests share: planted certificates instead of samples, and a check of every promise by brute force."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddsmoothing.memory import Binding, CertifiedMemory, Found, Risk, Store
from ddsmoothing.memory.rules import as_float

ALPHA = Risk(alpha=0.001)


def binding(shape: tuple[int, ...] = (2,), norm: str = "l2", dtype: str = "float64", num_classes: int = 10) -> Binding:
    return Binding(
        model="id:test",
        transform="none",
        norm=norm,
        dtype=dtype,
        precision="fp32",
        shape=shape,
        num_classes=num_classes,
        vote="pairwise",
    )


@dataclass
class Planted:
    """Answers what a function of the input says; counts how often it was asked."""

    says: Callable[[np.ndarray], tuple[int, float]]
    calls: list[tuple[int, float]] = field(default_factory=list)  # noise ids and alphas

    def check(self, alpha: float) -> None:
        pass

    def certify(self, x: torch.Tensor, *, alpha: float, seed: int, noise_id: int) -> Found:
        self.calls.append((noise_id, alpha))
        label, radius = self.says(x[0].double().numpy().ravel())
        return Found(prediction=label, radius=radius, sigma=0.5)

    def predict(self, x: torch.Tensor, *, seed: int) -> int:
        return self.says(x[0].double().numpy().ravel())[0]


def table(points: np.ndarray, labels: list[int], radii: list[float]) -> Planted:
    """Certificates looked up by the exact input."""
    known = {row.astype(np.float64).tobytes(): (a, r) for row, a, r in zip(points, labels, radii, strict=True)}
    return Planted(lambda x: known[x.tobytes()])


def memory_of(
    says: Planted, *, path: Path | None = None, shape: tuple[int, ...] = (2,), norm: str = "l2", risk: Risk = ALPHA
) -> CertifiedMemory:
    return CertifiedMemory(Store.create(path, binding(shape, norm), risk, seed=7), says)


def balls(store: Store) -> list[tuple[int, float, np.ndarray]]:
    """Class, radius and centre of all regions, read from the file."""
    return [(label, radius, as_float(point)) for label, radius, point in map(store.ball, range(1, len(store) + 1))]


def true_distance(norm: str, x: np.ndarray, y: np.ndarray) -> float:
    """In extended precision."""
    difference = x.astype(np.longdouble) - y.astype(np.longdouble)
    return float(np.sqrt((difference**2).sum()) if norm == "l2" else np.abs(difference).sum())


def check_disjoint(store: Store) -> None:
    """Balls of different class are disjoint, in extended precision."""
    for (a, r, x), (b, s, y) in combinations(balls(store), 2):
        assert a == b or r + s <= true_distance(store.binding.norm, x, y)


def brute_look_up(store: Store, point: np.ndarray) -> set[int]:
    """Classes of all balls that contain a point, without any index, in extended precision."""
    norm = store.binding.norm
    return {label for label, radius, centre in balls(store) if true_distance(norm, as_float(point), centre) < radius}


def edit(path: Path, sql: str, values: Sequence[Any] = ()) -> None:
    """What other tools can do to a file: the guards are off for one statement, then on again."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA synchronous=OFF")
    other.execute("PRAGMA ignore_check_constraints=1")
    guards = other.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'").fetchall()
    other.execute("BEGIN")
    try:
        for name, _ in guards:
            other.execute(f"DROP TRIGGER {name}")
        other.execute(sql, values)
        for _, guard in guards:
            other.execute(guard)
        other.execute("COMMIT")
    finally:
        other.close()
