"""The certified memory: a classifier that gives every later query inside a stored region that region's class.

It brings together a store, the rules and a smoothed classifier. What it claims is temporal: a certified input is
protected against perturbations that arrive AFTER it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ddsmoothing.claims import ABSTAIN
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.errors import InputError, ShapeError, StoreError, printable
from ddsmoothing.inputs import Batch, prepare
from ddsmoothing.memory.records import Binding
from ddsmoothing.memory.regions import Answer, Answers, Found, Regions
from ddsmoothing.memory.risk import Risk
from ddsmoothing.memory.rules import Point
from ddsmoothing.memory.smoothing import SmoothedCertifier, binding_of
from ddsmoothing.memory.store import Store
from ddsmoothing.plan import sampler_for
from ddsmoothing.sigma.policy import SigmaPolicy


class Certifier(Protocol):
    """What a memory asks outside its regions; every call draws fresh noise, keyed by (seed, noise_id)."""

    def check(self, alpha: float) -> None:
        """Raise InfeasibleError if no sample could certify at this alpha."""

    def certify(self, x: torch.Tensor, *, alpha: float, seed: int, noise_id: int) -> Found:
        """A certificate of level ``pointwise`` for one input ``(1, ...)``."""

    def predict(self, x: torch.Tensor, *, seed: int) -> int:
        """A class, or ABSTAIN, without any certificate."""


class CertifiedMemory:
    """A data-dependent smoothed classifier that keeps its word, backed by one file.

    ``create`` starts a memory and ``open`` takes one up again; any number of threads and processes may query the same
    file. Its invariant: regions of different classes never meet, and no stored radius exceeds the certified one.

    Args:
        store: The opened file.
        certifier: What is asked outside the regions; None for a memory that is only to be peeked into.
    References: Alfarra et al. 2022, arXiv:2012.04351, section 4 (the memory), with the rules of docs/memory.md.
    """

    def __init__(self, store: Store, certifier: Certifier | None = None) -> None:
        self.store, self._certifier, self._regions = store, certifier, Regions(store)

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        smoothed: SmoothedClassifier,
        policy: SigmaPolicy | float,
        *,
        shape: Sequence[int],
        alpha: float | None = None,
        delta: float | None = None,
        n0: int | None = None,
        n: int | None = None,
        n_max: int | None = None,
        bound: str = "one-class",
        transform: str = "x/255",
        dtype: str = "float32",
        model_id: str | None = None,
        seed: int | None = None,
    ) -> CertifiedMemory:
        """Start a memory.

        Args:
            path: Of the new file; None keeps the memory in this process only.
            smoothed: What certifies outside the regions. The memory belongs to its model, norm and number of classes.
            policy: Where each input's sigma comes from, ``SigmaPolicy.search(..)`` or a number.
            shape: Of one input, ``(...)`` without the batch.
            alpha: Failure probability of each certification; 0.001 where delta is not given either.
            delta: Failure probability of the whole memory, all attempts together, in place of alpha.
            n0: As for ``SmoothedClassifier.certify``.
            n: As there.
            n_max: As there.
            bound: As there.
            transform: How stored numbers became inputs.
            dtype: Of the inputs.
            model_id: Names a model that has no hash (a bare callable).
            seed: 64 bits that key all noise, together with random bits of each attempt: a fixed seed repeats nothing.
        Raises:
            InputError, InfeasibleError, ModelError, StoreError.
        """
        binding = binding_of(smoothed, tuple(shape), transform=transform, dtype=dtype, model_id=model_id)
        risk = Risk(alpha=0.001 if alpha is None and delta is None else alpha, delta=delta)
        certifier = SmoothedCertifier(smoothed, policy, sampler_for(n0, n, n_max, None), bound)
        certifier.check(risk.of(1))
        return cls(Store.create(None if path is None else Path(path), binding, risk, seed=seed), certifier)

    @classmethod
    def open(
        cls,
        path: str | Path,
        smoothed: SmoothedClassifier,
        policy: SigmaPolicy | float,
        *,
        n0: int | None = None,
        n: int | None = None,
        n_max: int | None = None,
        bound: str = "one-class",
        model_id: str | None = None,
    ) -> CertifiedMemory:
        """Take up a memory; refused, with the reason, for another model, norm or number of classes than its own.

        Args:
            path: Of the file.
            smoothed: The memory's own classifier.
            policy: Where each input's sigma comes from; it may be another one than before.
            n0: As for ``SmoothedClassifier.certify``.
            n: As there.
            n_max: As there.
            bound: As there.
            model_id: The name that a model without a hash was given.
        Raises:
            InputError, StoreError.
        """
        store = Store.open(Path(path))
        mine = store.binding
        store.check(binding_of(smoothed, mine.shape, transform=mine.transform, dtype=mine.dtype, model_id=model_id))
        return cls(store, SmoothedCertifier(smoothed, policy, sampler_for(n0, n, n_max, None), bound))

    def __len__(self) -> int:
        with self.store.reading():
            return len(self.store)

    def __repr__(self) -> str:
        store = self.store
        try:
            with store.reading():
                sealed = "" if store.sealed is None else ", sealed"
                held = f"{len(store):,} regions of {store.attempts:,} attempts{sealed}"
        except StoreError:
            held = "closed"
        where = "" if store.path is None else f" in {printable(store.name)}"
        return f"CertifiedMemory{where}: {held}; {store.binding.norm.upper()}, level memory"

    def query(self, x: torch.Tensor, *, grow: bool = False) -> Answers:
        """Answer inputs ``(B, ...)`` one after another, in their order.

        Inside a region the answer needs no forward pass. Outside, sigma is chosen and a certificate made with noise
        that was never used before; what the regions of other classes leave of it is stored before the answer is given.

        Args:
            x: ``(B, ...)`` of the memory's shape and type.
            grow: Inside a region, certify all the same, and store the ball if it is larger than what is known.
        Raises:
            ShapeError, StoreError, InfeasibleError, ModelError.
        """
        if self._certifier is None:
            raise InputError("this memory was opened without a classifier, expected one; `peek` needs none.")
        batch, asked = prepared(x, self.store.binding), self._certifier
        return Answers(
            rows=tuple(self._query(asked, x[i : i + 1], point_of(batch, i), grow) for i in range(len(batch)))
        )

    def peek(self, x: torch.Tensor) -> Answers:
        """What inputs ``(B, ...)`` are answered inside the regions: nothing is stored, drawn or asked of a classifier.

        Outside all regions: ABSTAIN, radius 0, reason ``outside``.
        """
        batch, store = prepared(x, self.store.binding), self.store
        points = [point_of(batch, i) for i in range(len(batch))]
        found = [self._regions.look_up(point, store.sketch.of(point[None])[0]) for point in points]
        return Answers(rows=tuple(row or Answer(prediction=ABSTAIN, radius=0.0, reason="outside") for row in found))

    def seal(self) -> str:
        """Freeze the memory for good and return its hash; see ``Store.seal``."""
        return self.store.seal()

    def close(self) -> None:
        """Close the file."""
        self.store.close()

    def _query(self, certifier: Certifier, x: torch.Tensor, point: Point, grow: bool) -> Answer:
        store, sketch = self.store, self.store.sketch.of(point[None])[0]
        inside = self._regions.look_up(point, sketch)
        if inside is not None and not (grow and store.sealed is None):
            return inside
        if store.sealed is not None:
            return self._uncertified(certifier.predict(x, seed=secrets.randbits(64)))
        certifier.check(store.risk.of(store.attempts + 1))
        attempt = store.reserve()
        found = certifier.certify(
            x, alpha=store.risk.of(attempt), seed=store.seed, noise_id=store.noise_id(attempt)
        )  # no lock is held meanwhile
        with store.writing():
            if store.sealed is not None:
                return self._uncertified(found.prediction)
            inside = self._regions.look_up(point, sketch)
            if inside is None:
                return self._regions.settle(point, sketch, found, attempt)
            if grow and found.prediction == inside.prediction:
                grown = self._regions.settle(point, sketch, found, attempt, more_than=inside.radius)
                return grown if grown.region is not None else inside
            return inside

    @staticmethod
    def _uncertified(prediction: int) -> Answer:
        return Answer(prediction=prediction, radius=0.0, reason="uncertified")


def prepared(x: torch.Tensor, binding: Binding) -> Batch:
    """Inputs ``(B, ...)`` made ready; ShapeError or InputError unless they are of the memory's shape and type."""
    if isinstance(x, torch.Tensor) and tuple(x.shape[1:]) != binding.shape:
        raise ShapeError(f"got inputs of shape {tuple(x.shape)}, expected (B, {', '.join(map(str, binding.shape))}).")
    batch = prepare(x, None, torch.device("cpu"), any_range=True)  # perturbed ones may lie anywhere
    dtype = str(batch.dtype).removeprefix("torch.")
    if dtype != binding.dtype:
        raise InputError(f"got {dtype} inputs, expected {binding.dtype} (or uint8): the memory belongs to that type.")
    return batch


def point_of(batch: Batch, row: int) -> Point:
    """An input as the memory keeps it: uint8 where it lies on the 8-bit grid, else float64."""
    if batch.on_grid[row]:
        return np.asarray(batch.grid[row].astype(np.uint8))
    return np.asarray(batch.values[row].double().numpy())
