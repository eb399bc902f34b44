"""Certificates and answers of a pair table: level ``stateless``. It knows no files."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import check_alpha, check_count
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import STATELESS, Claim, Measurement, PairTable
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.errors import InputError
from ddsmoothing.labels import checked_labels
from ddsmoothing.plan import DrawAt
from ddsmoothing.streams import Stream, checked_seed

PILOT = 100  # samples at each sigma that choose the class
Drawn = tuple[tuple[Measurement, ...], tuple[Measurement, ...]]
Talk = Generator[tuple[DrawAt, ...], list[Measurement], Drawn]


@dataclass(frozen=True, kw_only=True, eq=False)
class TableCertification:
    """Certificates of B inputs by a pair table, level ``stateless``.

    Attributes:
        ids: noise keys.   input_sha256: of each input's bytes.   table: the rule.
        pilots: of each input one measurement at every sigma of the table; they chose the class.
        fresh: of each input those that bound it, at the sigmas of its class; none where sampling stopped.
        alpha: failure probability of each certificate.   moved: ``(B,)`` how far inputs were moved to the grid.
        seed: of the noise.
    """

    ids: tuple[int, ...]
    input_sha256: tuple[str, ...]
    table: PairTable
    pilots: tuple[tuple[Measurement, ...], ...]
    fresh: tuple[tuple[Measurement, ...], ...]
    alpha: float
    moved: NDArray[np.float64]
    seed: int
    level: str = STATELESS.name

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What follows for each input."""
        certificate = certificate_for(self.table.norm)
        return tuple(
            self.table.claim(pilots, fresh, certificate, self.alpha, float(moved))
            for pilots, fresh, moved in zip(self.pilots, self.fresh, self.moved, strict=True)
        )

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` certified class, or ABSTAIN."""
        return np.array([claim.prediction for claim in self.claims], dtype=np.int64)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained; errs low."""
        return np.array([claim.radius for claim in self.claims])

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """``(B,)`` noisy copies drawn for each input, pilots included."""
        return np.array([sum(one.n for one in (*p, *f)) for p, f in zip(self.pilots, self.fresh, strict=True)])

    def evidence(self, i: int) -> str:
        """JSON of all that the claim of one input follows from."""
        drawn = [one.compact() for one in (*self.pilots[i], *self.fresh[i])]
        found = {"rule": self.table.config(), "alpha": self.alpha, "moved": float(self.moved[i]), "measurements": drawn}
        return json.dumps(found, separators=(",", ":"))


def certify_pairs(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    table: PairTable,
    *,
    n0: int = PILOT,
    n: int = 10_000,
    alpha: float = 0.001,
    labels: ArrayLike | None = None,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> TableCertification:
    """Certify every input by a pair table.

    Args:
        smoothed: the base classifier with its norm and engine; its own vote and offsets have no say here.
        x: ``(B, ...)`` as for ``certify``.
        table: the rule, fixed before on other inputs.
        n0: samples at each sigma of the table that choose the class.
        n: fresh samples in all, divided between the sigmas of the class by what the pilot shows.
        alpha: failure probability of each certificate.
        labels: ``(B,)``: stop an input whose pilot class is another.
        seed: of the noise; None takes one from the operating system.
        ids: noise keys; None takes them from the inputs' bytes.
        progress: called with samples done.
    Raises: ShapeError, InputError, InfeasibleError, ModelError.
    """
    _check(smoothed, table, n0, n, alpha)
    batch = smoothed.prepare(x, ids)
    truth = [None] * len(batch) if labels is None else checked_labels(labels, len(batch), table.num_classes).tolist()
    seed = checked_seed(seed)
    talks = [table_talk(table, n0, n, alpha, label) for label in truth]
    found = smoothed.converse(batch, np.full(len(batch), table.sigmas[0]), talks, seed, progress)
    return TableCertification(
        ids=batch.ids,
        input_sha256=batch.sha256,
        table=table,
        pilots=tuple(pilots for pilots, _ in found),
        fresh=tuple(fresh for _, fresh in found),
        alpha=alpha,
        moved=batch.moved,
        seed=seed,
    )


def predict_pairs(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    table: PairTable,
    *,
    n0: int = PILOT,
    n: int = 2_000,
    alpha: float = 0.001,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """The answers ``(B,)`` of a pair table, or ABSTAIN; each another than its true answer w.p. at most alpha.

    Arguments as for ``certify_pairs``. For noise on the grid n times its total-variation bound comes on top of alpha.
    """
    _check(smoothed, table, n0, n, alpha)
    batch = smoothed.prepare(x, ids)
    talks = [table_talk(table, n0, n, alpha, None, Stream.PREDICT) for _ in range(len(batch))]
    sigma = np.full(len(batch), table.sigmas[0])
    found = smoothed.converse(batch, sigma, talks, checked_seed(seed), progress)
    return np.array([table.answer(pilots, fresh, alpha) for pilots, fresh in found], dtype=np.int64)


def _check(smoothed: SmoothedClassifier, table: PairTable, n0: int, n: int, alpha: float) -> None:
    check_count(n0, "n0")
    check_count(n, "n")
    check_alpha(alpha)
    made = (smoothed.certificate.norm, smoothed.num_classes)
    if made != (table.norm, table.num_classes):
        raise InputError(f"the table is of {table.norm} and {table.num_classes} classes, the model of {made}.")
    table.check(n, alpha)


def table_talk(table: PairTable, n0: int, n: int, alpha: float, label: int | None, role: Stream | None = None) -> Talk:
    """Ask for a pilot at every sigma, then for the samples of the class it chose.

    Args:
        role: one stream for both parts, one after the other; None for those of certificates.
    """
    first, second = (Stream.PILOT, Stream.CERTIFY) if role is None else (role, role)
    pilots = yield tuple(
        DrawAt(first, n0, table.pilot_tally(slot), sigma, slot) for slot, sigma in enumerate(table.sigmas)
    )
    top = table.choose(pilots)
    if label not in (None, top):
        return tuple(pilots), ()
    shares = table.allocated(pilots, top, n, alpha)
    fresh = yield tuple(DrawAt(second, m, table.tally(top), table.sigmas[k], k) for k, m in shares.items())
    return tuple(pilots), table.looked(fresh, top, alpha)
