"""How much the order of queries matters: a run's rows given to empty memories in many orders. It stores nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims import ABSTAIN
from ddsmoothing.errors import InputError
from ddsmoothing.memory import rules
from ddsmoothing.memory.inputs import Inputs, found_at, order_free_cuts, touching
from ddsmoothing.memory.regions import Found
from ddsmoothing.runs import Run


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderStudy:
    """P orders of the same run.

    Attributes:
        accuracy, acr: ``(P,)`` certified accuracy at radius 0 and average certified radius of level ``memory``.
        cut, answered, flipped: ``(P,)`` rows cut, answered from a region, and answered with another class than the
            run's certificate names.
        pairs: pairs of certified balls of different class that meet.   free_accuracy, free_acr: of the order-free rule.
    """

    accuracy: NDArray[np.float64]
    acr: NDArray[np.float64]
    cut: NDArray[np.int64]
    answered: NDArray[np.int64]
    flipped: NDArray[np.int64]
    pairs: int
    free_accuracy: float
    free_acr: float


def order_study(run: Run, inputs: Inputs, *, permutations: int = 20, seed: int = 0) -> OrderStudy:
    """Run the online rule over random orders of a run, certificates as they are (no alpha is shared out).

    Args:
        inputs: of the run, see ``inputs_of``.   permutations: the first is the run's own order.   seed: of the others.
    """
    if permutations < 1:
        raise InputError(f"permutations is {permutations}, expected at least 1.")
    run.need_labels()
    found = [found_at(run.header, row, run.header.alpha) for row in run.rows]
    pairs = touching(inputs, found)
    near: list[list[tuple[int, float]]] = [[] for _ in found]
    for pair in pairs:
        near[pair.i].append((pair.j, pair.far))
        near[pair.j].append((pair.i, pair.far))
    rng = np.random.default_rng(seed)
    orders = [np.arange(len(run)), *(rng.permutation(len(run)) for _ in range(permutations - 1))]
    results = [_online(inputs, found, near, order) for order in orders]
    free = np.array(
        [rules.at_centre(inputs.binding.norm, inputs.binding.d, c.radius) for c in order_free_cuts(inputs, found)]
    )
    accuracy, acr = zip(*(_scores(run, answer, radius) for answer, radius, _ in results), strict=True)
    free_accuracy, free_acr = _scores(run, run.prediction, free)
    kinds = np.array([kind for _, _, kind in results])
    flips = [
        int(((np.array(kind) == "answered") & (run.prediction != ABSTAIN) & (answer != run.prediction)).sum())
        for answer, _, kind in results
    ]
    return OrderStudy(
        accuracy=np.array(accuracy),
        acr=np.array(acr),
        cut=(kinds == "cut").sum(1),
        answered=(kinds == "answered").sum(1),
        flipped=np.array(flips),
        pairs=sum(
            found[p.i].prediction != found[p.j].prediction
            and min(found[p.i].radius, found[p.j].radius) > 0.0
            and p.far < found[p.i].radius + found[p.j].radius
            for p in pairs
        ),
        free_accuracy=free_accuracy,
        free_acr=free_acr,
    )


def _online(
    inputs: Inputs, found: list[Found], near: list[list[tuple[int, float]]], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Answers, radii and kinds of all rows, given to an empty memory in this order."""
    norm, d = inputs.binding.norm, inputs.binding.d
    stored = np.zeros(len(found))
    answer = np.array([one.prediction for one in found])
    radius, kind = np.zeros(len(found)), ["abstained"] * len(found)
    for i in order.tolist():
        held = [(rules.within(norm, d, stored[j], far), j) for j, far in near[i] if far < stored[j]]
        if held:
            radius[i], j = max(held)
            answer[i], kind[i] = found[j].prediction, "answered"
            continue
        if found[i].prediction == ABSTAIN:
            continue
        others = [(far, stored[j]) for j, far in near[i] if stored[j] > 0 and found[j].prediction != answer[i]]
        distances, radii = np.array(others).reshape(-1, 2).T
        cut = rules.reconciled(norm, d, found[i].radius, distances, radii)
        stored[i], radius[i] = cut.radius, rules.at_centre(norm, d, cut.radius)
        kind[i] = "kept" if cut.by is None else "cut"
    return answer, radius, kind


def _scores(run: Run, answer: NDArray[np.int64], radius: NDArray[np.float64]) -> tuple[float, float]:
    right = (answer == run.label) & (radius > 0.0)
    return float(right.mean()), float(np.where(right, radius, 0.0).mean())
