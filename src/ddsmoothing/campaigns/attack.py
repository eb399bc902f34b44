"""Attack every certified input of a run, inside its radius and outside, and count what breaks.

Inside a true certificate the smoothed classifier cannot answer another class, so violations there are held against what
alpha allows. Outside they show how far the certificate is from the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from ddsmoothing.attacks import Attack, eot_pgd, first_rounded
from ddsmoothing.campaigns.resample import check_same, search_again
from ddsmoothing.claims import ABSTAIN, level_named
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.data import Dataset
from ddsmoothing.devices import device_of
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.runs.schema import ResultRow
from ddsmoothing.runs.store import Run
from ddsmoothing.stateless import predict_stateless
from ddsmoothing.streams import checked_seed

FACTORS: Final = (0.5, 0.9, 0.999, 1.5, 2.0)
SIGNIFICANT: Final = 1e-3  # so improbable if the certificates held: they are contradicted
_GROUP: Final = 64
Memory = Callable[[torch.Tensor], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """An attacked input that the smoothed classifier answers with another class.

    Attributes:
        factor: of the certified radius.   distance: of the attacked point, in the certificate's norm.
        sigma: at which the attacked point was answered.
    """

    id: int
    factor: float
    distance: float
    radius: float
    certified: int
    answered: int
    sigma: float


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """What an attack on a run found.

    Attributes:
        level: what was attacked: ``pointwise``, ``stateless`` or ``memory``.
        covered: the run's certificates are of that level.   inputs: certified inputs attacked.
        abstained: answers by factor that were an abstention, which is no violation.
        p_value: probability of at least so many inputs with a violation inside if all certificates were as good as
            alpha says; ``allowed`` is that probability for one input.
    """

    level: str
    covered: bool
    norm: str
    factors: tuple[float, ...]
    inputs: int
    n: int
    alpha: float
    seed: int
    abstained: dict[float, int]
    violations: tuple[Violation, ...]
    allowed: float
    p_value: float

    def at(self, factor: float) -> tuple[Violation, ...]:
        """Violations at one factor of the radius."""
        return tuple(v for v in self.violations if v.factor == factor)

    @property
    def inside(self) -> tuple[Violation, ...]:
        """Violations at points inside the certified ball."""
        return tuple(v for v in self.violations if v.distance < v.radius)

    @property
    def smallest(self) -> Violation | None:
        """The violation with the smallest perturbation in units of the radius."""
        return min(self.violations, key=lambda v: v.distance / v.radius, default=None)

    @property
    def contradicted(self) -> bool:
        """True where there are more violations inside than alpha explains."""
        return self.p_value < SIGNIFICANT


def attack_run(
    run: Run,
    smoothed: SmoothedClassifier,
    data: Dataset,
    *,
    factors: Sequence[float] = FACTORS,
    attack: Attack | None = None,
    n: int = 1000,
    level: str | None = None,
    memory: Memory | None = None,
    maximum: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> AttackReport:
    """Attack the certified inputs of a run and ask the smoothed classifier at every attacked point, with fresh noise.

    Args:
        factors: of each certified radius.   n: samples of each answer, at the run's alpha.
        level: None for the run's own. ``pointwise`` keeps each input's sigma; ``stateless`` asks the whole classifier
            again at every attacked point. A rule over several sigmas certifies that; certificates of a run that
            searched each sigma do NOT cover it.
        memory: the answers ``(B,)`` of the memory to points ``(B, ...)``, for a run of level ``memory``: inside a
            radius it must give the stored class, so any other answer (an abstention too) is a violation.
        maximum: at most so many inputs.   seed: of noise and starts; None takes one from the operating system.
        progress: called with the number of attacks (inputs times factors) done.
    Raises: InputError, RunError.
    """
    level = level or run.level
    _check(run, smoothed, level, memory, factors)
    check_same(run, smoothed, data)
    seed = checked_seed(seed)
    rows = [row for row in run.rows if row.prediction != ABSTAIN and row.radius > 0.0][:maximum]
    if not rows:
        raise RunError(f"{run.path} has no certified input, so there is nothing to attack.")
    generator = torch.Generator().manual_seed(seed % 2**63)
    violations: list[Violation] = []
    asked = {"grid": _rounding(smoothed), "float": smoothed.with_any_range()}
    abstained = dict.fromkeys(factors, 0)
    for index, factor in enumerate(factors):
        for group in (rows[i : i + _GROUP] for i in range(0, len(rows), _GROUP)):
            points, distance = _points(smoothed, data, group, factor, attack, generator)
            if memory is not None:
                sigma, answers = np.array([row.sigma for row in group]), memory(points)
            else:
                sigma, answers = _answers(run, asked, group, points, n, level, (seed + index) % 2**64)
            abstained[factor] += int((answers == ABSTAIN).sum())
            violations += [
                Violation(
                    id=row.id,
                    factor=factor,
                    distance=float(distance[i]),
                    radius=row.radius,
                    certified=row.prediction,
                    answered=int(answers[i]),
                    sigma=float(sigma[i]),
                )
                for i, row in enumerate(group)
                if answers[i] not in ((row.prediction,) if memory is not None else (ABSTAIN, row.prediction))
            ]
            if progress is not None:
                progress(len(group))
    tries = sum(factor <= 1.0 for factor in factors)
    allowed = (
        0.0
        if memory is not None
        else min(1.0, run.header.alpha + tries * (run.header.alpha + n * max(row.tv for row in rows)))
    )
    broken = len({v.id for v in violations if v.distance < v.radius})
    return AttackReport(
        level=level,
        covered=level == run.level,
        norm=run.header.norm,
        factors=tuple(factors),
        inputs=len(rows),
        n=n,
        alpha=run.header.alpha,
        seed=seed,
        abstained=abstained,
        violations=tuple(violations),
        allowed=allowed,
        p_value=float(binom.sf(broken - 1, len(rows), allowed)) if broken else 1.0,
    )


def _check(run: Run, smoothed: SmoothedClassifier, level: str, memory: Memory | None, factors: Sequence[float]) -> None:
    header, wanted = run.header, level_named(level)
    if wanted.from_regions != level_named(header.level).from_regions or wanted.from_regions != (memory is not None):
        raise InputError(f"the run is of level {header.level}; only a memory's own run is attacked at the memory.")
    if memory is not None and max(factors, default=0.0) >= 1.0:
        raise InputError("a memory is attacked inside its radii only: outside, a query would change it. Use --factors.")
    if wanted.asks_anew != (header.stateless is not None) and header.sigma_policy != "search":
        why = {
            "fixed": "one fixed sigma is stateless already",
            "file": "a file of sigmas is no rule",
            "rule": "a rule over several sigmas has no sigma to keep",
        }[header.sigma_policy]
        raise InputError(f"only a run with the sigma policy search is attacked at both levels; {why}.")
    if smoothed.precision != "fp32" or header.precision != "fp32":
        raise InputError(f"attacks need precision fp32, the run has {header.precision}.")
    if not factors or any(not 0.0 < factor <= 100.0 for factor in factors):
        raise InputError(f"factors are {tuple(factors)}, expected positive multiples of the radius.")


def _points(
    smoothed: SmoothedClassifier,
    data: Dataset,
    group: list[ResultRow],
    factor: float,
    attack: Attack | None,
    generator: torch.Generator,
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Attacked points ``(B, ...)`` of a group and their distances ``(B,)`` in the certificate's norm."""
    x = data[[row.id for row in group]][0]
    x = x.to(device_of(smoothed.model) or x.device)
    points = eot_pgd(
        smoothed.model,
        x,
        torch.tensor([row.prediction for row in group], device=x.device),
        sigma=[row.sigma for row in group],
        radius=[factor * row.radius for row in group],
        certificate=smoothed.certificate,
        attack=attack,
        generator=generator,
    )
    order = 2 if smoothed.certificate.norm == "l2" else 1
    return points, (points.double() - x.double()).flatten(1).norm(p=order, dim=1).cpu().numpy()


def _answers(
    run: Run,
    asked: dict[str, SmoothedClassifier],
    group: list[ResultRow],
    points: torch.Tensor,
    n: int,
    level: str,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sigmas and classes ``(B,)`` of the smoothed classifier at the points, which lie off the grid.

    Args:
        asked: by the noise of a certificate: those of grid inputs speak of the base classifier that rounds first.
    """
    sigma, answers = np.array([row.sigma for row in group]), np.empty(len(group), dtype=np.int64)
    for kind in sorted({row.noise for row in group}):
        where = [i for i, row in enumerate(group) if row.noise == kind]
        smoothed, rule = asked[kind], run.header.stateless
        ids = [group[i].id for i in where]
        if rule is not None:
            more: dict[str, Any] = {"n0": run.header.sampler_options["n0"], "seed": seed, "ids": ids}
            answers[where] = predict_stateless(smoothed, points[where], rule, n=n, alpha=run.header.alpha, **more)
            continue
        if level_named(level).asks_anew:
            found = search_again(run, smoothed, points[where], seed, ids)
            sigma[where] = found.sigma
        result = smoothed.predict(points[where], sigma[where], n=n, alpha=run.header.alpha, seed=seed, ids=ids)
        answers[where] = result.prediction
    return sigma, answers


def _rounding(smoothed: SmoothedClassifier) -> SmoothedClassifier:
    return SmoothedClassifier(
        first_rounded(smoothed.model, smoothed.levels),
        smoothed.certificate,
        num_classes=smoothed.num_classes,
        vote=smoothed.vote,
        offsets=smoothed.offsets,
        block_size=smoothed.block_size,
        levels=smoothed.levels,
        any_range=True,
    ).with_workers(smoothed.workers)
