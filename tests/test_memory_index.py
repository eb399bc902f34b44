"""The filter never leaves out a ball that a point can meet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.memory import Risk, Store
from ddsmoothing.memory import index as module
from ddsmoothing.memory.index import DctSketch, IdentitySketch, Index, RandomSketch, sketch_for
from ddsmoothing.memory.regions import Regions
from ddsmoothing.memory.rules import as_float, distance
from memory_helpers import binding

SHAPES: dict[tuple[int, ...], type] = {
    (2,): IdentitySketch,
    (1, 8, 8): IdentitySketch,
    (1, 28, 28): DctSketch,
    (28, 28): DctSketch,
    (3, 32, 32): DctSketch,
    (3, 224, 224): DctSketch,
    (784,): RandomSketch,
    (65,): RandomSketch,
    (6, 7, 9): RandomSketch,
}


def points_of(shape: tuple[int, ...], kind: str, size: int = 40) -> np.ndarray[Any, Any]:
    """Points with duplicates, near-duplicates down to one step, and others."""
    d, rng = math.prod(shape), np.random.default_rng(math.prod(shape))
    if kind == "uint8":
        x = rng.integers(0, 256, (size, d)).astype(np.uint8)
        x[1], x[2] = x[0], x[0]
        x[2, 0] ^= 1
        x[3] = np.clip(x[0].astype(int) + rng.integers(-2, 3, d), 0, 255)
        return x
    x = rng.random((size, d))
    x[1], x[2] = x[0], x[0] + 1e-5 / math.sqrt(d)
    x[3] = x[0] + 1e-3 * rng.normal(size=d) / math.sqrt(d)
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sketches_are_orthonormal_projections(shape: tuple[int, ...]) -> None:
    sketch, x = sketch_for(shape), points_of(shape, "float", 6)
    assert type(sketch) is SHAPES[shape]
    made = sketch.of(x).astype(np.float64)
    assert made.shape == (6, min(64, math.prod(shape)) + 1)
    norms = np.sqrt(((x - 0.5) ** 2).sum(1))
    assert np.allclose(np.sqrt((made**2).sum(1)), norms, rtol=1e-6)
    for i in range(6):
        for j in range(i):
            lower = math.sqrt(((made[i] - made[j]) ** 2).sum())
            assert lower <= distance("l2", x[i], x[j]) + 1e-6 * norms.max()
    one = np.concatenate([sketch.of(x[i : i + 1]) for i in range(6)])
    assert np.abs(one - made).max() <= 2.0**-22 * norms.max()
    with pytest.raises(ShapeError):
        sketch.of(x[:, :1])


def test_the_dct_sketch_catches_most_of_smooth_images() -> None:
    t = np.linspace(0, 1, 32)
    image = np.stack([np.outer(np.sin(3 * t), np.cos(2 * t)) * c for c in (0.5, 0.4, 0.45)]) / 2 + 0.5
    made = sketch_for((3, 32, 32)).of(image.reshape(1, -1))[0]
    assert made[-1] ** 2 < 0.02 * (made**2).sum()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("shape", [(2,), (1, 28, 28), (784,), (3, 32, 32), (3, 224, 224)], ids=str)
def test_nothing_that_brute_force_finds_is_left_out(shape: tuple[int, ...], kind: str, norm: str) -> None:
    """Balls of radius 1e-4 and duplicates, balls that touch a point exactly, and large ones, against float64."""
    x = points_of(shape, kind)
    d, sketch = math.prod(shape), sketch_for(shape)
    made, rng = sketch.of(x), np.random.default_rng(1)
    far = np.array([[distance(norm, a, b) for b in x] for a in x])
    for radii in (
        np.full(len(x), 1e-4),
        np.nextafter(far[0], 9e9) + 1e-12,  # all just contain point 0
        far[3].copy(),  # all touch point 3
        rng.uniform(0, 1.2 * far.max(), len(x)),
    ):
        index, labels = Index(sketch.terms, d), rng.integers(0, 3, len(x))
        index.extend(labels, radii, made)
        assert len(index) == len(x)
        for i in range(len(x)):
            for reach in (0.0, 1e-4, float(radii[i])):
                wanted = set(np.flatnonzero(far[i] < reach + radii).tolist())
                assert wanted <= set(index.near(made[i], reach).tolist())
                others = {j for j in wanted if labels[j] != labels[i]}
                assert others <= set(index.near(made[i], reach, not_of=int(labels[i])).tolist())


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(2,), (1, 28, 28), (3, 32, 32), (3, 224, 224)], ids=str)
def test_look_up_and_reconciliation_agree_with_brute_force(shape: tuple[int, ...], norm: str) -> None:
    """Through the file: bytes and floats mixed, balls of radius 1e-4, touching ones, duplicates, two classes."""
    d, rng = math.prod(shape), np.random.default_rng(0)
    points: list[np.ndarray[Any, Any]] = [*points_of(shape, "uint8", 12), *points_of(shape, "float", 12)]
    points += [as_float(points[0]) + 5e-5 / d, as_float(points[1]).copy()]
    far = np.array([[distance(norm, a, b) for b in points] for a in points])
    radii = np.where(np.arange(len(points)) % 2 == 0, 1e-4, far[0] + (np.arange(len(points)) % 3 - 1) * 1e-9)
    radii = np.maximum(radii, 1e-4)
    store = Store.create(None, binding(shape, norm), Risk(alpha=0.001), seed=0)
    with store.writing():
        for point, radius in zip(points, radii, strict=True):
            values = {"radius": float(radius), "certified": float(radius)}
            store.append(point, label=0, sigma=1.0, attempt=store.reserve(), **values)
    regions = Regions(store)
    for i, point in enumerate(points):
        sketch = store.sketch.of(point[None])[0]
        answer = regions.look_up(point, sketch)
        held = far[i] < radii
        assert (answer is not None) == bool(held.any())
        if answer is not None:
            assert answer.radius == pytest.approx(max(0.0, float((radii - far[i])[held].max())), rel=1e-6, abs=1e-7)
        certified = float(rng.uniform(0, 2 * far.max()))
        cut = regions.reconcile(point, sketch, 1, certified)
        assert cut.radius == pytest.approx(max(0.0, min(certified, float((far[i] - radii).min()))), abs=1e-4)
        assert cut.radius <= max(0.0, float((far[i] - radii).min()))
        assert regions.reconcile(point, sketch, 0, certified).radius == certified  # its own class never cuts


def test_far_balls_are_filtered_out() -> None:
    t = np.linspace(0, 3, 32)
    rng = np.random.default_rng(0)
    images = np.stack([np.outer(np.sin(a * t + b), np.cos(c * t)) for a, b, c in rng.uniform(0, 4, (300, 3))])
    x = np.repeat(images.reshape(300, 1, -1), 3, axis=1).reshape(300, -1) / 2 + 0.5
    sketch = sketch_for((3, 32, 32))
    index = Index(sketch.terms, 3072)
    index.extend(np.zeros(300, dtype=np.int64), np.full(300, 0.5), sketch.of(x))
    far = np.array([distance("l2", x[0], b) for b in x])
    assert (far < 0.5).sum() <= len(index.near(sketch.of(x[:1])[0])) < 20


def test_coordinates_that_would_overflow_are_refused() -> None:
    for wrong in (1e10, -1e30, math.nan, math.inf):
        with pytest.raises(InputError, match="beyond 1e\\+09"):
            sketch_for((3,)).of(np.array([[0.0, wrong, 0.5]]))
    sketch = sketch_for((100,))
    index, x = Index(sketch.terms, 100), np.full((1, 100), 9e8)
    index.extend(np.zeros(1, dtype=np.int64), np.array([1e-4]), sketch.of(x))
    assert index.near(sketch.of(x)[0]).tolist() == [0]


def test_chunks_grow_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    x = points_of((5,), "float", 50)
    sketch = sketch_for((5,))
    index, made = Index(sketch.terms, 5), sketch.of(x)
    for start, stop in ((0, 1), (1, 20), (20, 24), (24, 50)):
        index.extend(np.arange(start, stop) % 3, np.full(stop - start, 0.01), made[start:stop])
    assert len(index) == 50
    for i in range(50):
        assert i in index.near(made[i])
        assert all(j % 3 != 1 for j in index.near(made[i], 9.0, not_of=1))
    assert len(Index(6, 5).near(made[0])) == 0


def test_products_in_lower_precision_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 64)
    module.check_float32()

    class Short(np.ndarray):
        def __matmul__(self, other: Any) -> Any:
            cut = (np.asarray(self).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
            return cut @ (np.asarray(other).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    full = np.full
    monkeypatch.setattr(module.np, "full", lambda *a, **k: full(*a, **k).view(Short))
    with pytest.raises(Exception, match="less than float32"):
        module.check_float32()
