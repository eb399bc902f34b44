"""Samplers talking with whoever counts: all inputs' wishes of a round in one packed count. It knows no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims import measured
from ddsmoothing.counting.contract import Request
from ddsmoothing.inputs import Batch
from ddsmoothing.plan import Result, Talk
from ddsmoothing.streams import Blocks

Count = Callable[[Sequence[Request]], Sequence[NDArray[np.int64]]]


def converse(
    batch: Batch,
    sigma: NDArray[np.float64],
    talks: Sequence[Talk[Result]],
    tv: Callable[[int, float], float],
    count: Count,
) -> list[Result]:
    """Give every input's sampler the samples it asks for, until each has its result.

    Args:
        batch: The inputs.
        sigma: ``(B,)``, of each, where a sampler does not say another.
        talks: One for each input.
        tv: Bound on the total-variation distance of the noise of an input at a sigma.
        count: Counts what requests ask for.
    """
    found: dict[int, Result] = {}
    blocks = [Blocks(batch.d) for _ in talks]
    known = [tv(row, float(s)) for row, s in enumerate(sigma)]
    wishes = {row: next(talk) for row, talk in enumerate(talks)}
    while wishes:
        asked = [(row, draw) for row, draws in wishes.items() for draw in draws]
        requests = []
        for row, draw in asked:
            requests.append(
                Request(
                    row=row,
                    sigma=float(sigma[row]) if draw.sigma is None else draw.sigma,
                    stream=draw.stream,
                    n=draw.n,
                    first_block=blocks[row].take(draw.stream, draw.n, draw.slot),
                    tally=draw.tally.kind,
                    anchor=draw.tally.anchor,
                )
            )
        answers: dict[int, list[Any]] = {row: [] for row in wishes}  # of measurements
        for (row, draw), request, counts in zip(asked, requests, count(requests), strict=True):
            one = measured(draw.stream.name.lower(), request.sigma, draw.tally, counts, slot=draw.slot)
            answers[row].append(replace(one, tv=known[row] if draw.sigma is None else tv(row, draw.sigma)))
        wishes = {}
        for row, answer in answers.items():
            try:
                wishes[row] = talks[row].send(answer)
            except StopIteration as end:
                found[row] = end.value
    return [found[row] for row in range(len(talks))]
