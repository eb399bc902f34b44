"""What a certification would cost, from a few seconds of forward passes. It writes nothing and keeps no noise."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from ddsmoothing.campaigns.policy import SigmaPolicy
from ddsmoothing.claims import Measurement, Rule, measured
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.speed import samples_a_second
from ddsmoothing.data import Dataset
from ddsmoothing.inputs import check_sigma
from ddsmoothing.plan import PLAN_PILOT, Plan, Sampler, Target, planned_samples
from ddsmoothing.sigma.search import search_sigma
from ddsmoothing.streams import Stream, checked_seed

PROBE_SECONDS: Final = 2.0  # for the speed, and again for the inputs
MOST_TIMES: Final = 3.0  # as long may the fewest inputs of a slow model take
FEWEST_SAMPLES: Final = 20  # of an input: fewer say nothing of what the planner will do
LEAST_INPUTS: Final = 3

Range = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Samples and seconds of a whole run.

    Attributes:
        inputs: of the run.   probed: inputs looked at.
        samples: (low, expected, high): 95 % interval of the mean over inputs, times their number.
        seconds: the same at the fastest, the middle and the slowest rate seen.
        note: what the probe had no time for; empty where there was time.
    """

    inputs: int
    probed: int
    samples: Range
    seconds: Range
    note: str = ""

    def text(self) -> str:
        """Two lines for people, or three."""
        low, mean, high = self.samples
        samples = f"{mean:,.0f}" if low == high else f"{mean:,.0f} ({low:,.0f} to {high:,.0f})"
        times = [_duration(value) for value in self.seconds]
        return (
            f"{self.inputs} inputs: {samples} samples\n"
            f"time {times[1]} ({times[0]} to {times[2]}), probed on {self.probed} inputs"
        ) + (f"\n{self.note}" if self.note else "")


def forecast(
    smoothed: SmoothedClassifier,
    data: Dataset,
    ids: list[int],
    policy: SigmaPolicy,
    sampler: Sampler,
    alpha: float,
    rule: Rule,
) -> Forecast:
    """Measure the speed in passes that grow, then look at inputs spread over the run, for eight seconds at most.

    What the planner will take is asked of it, with the pilot that the run would give it or a smaller one. What the
    sampler ``target`` will take is not known before; the range then goes from its pilot to the most.
    """
    asked = _Asked(smoothed, data, ids, policy, sampler, alpha, rule)
    order = np.random.default_rng(0).permutation(ids).tolist()
    batch = smoothed.prepare(data[order[:1]][0])
    rows, growing = smoothed.block_rows(batch.d), not smoothed.compiled
    parts = smoothed.engine, smoothed.certificate.noise, smoothed.num_classes
    rates = [samples_a_second(*parts, batch, rows, PROBE_SECONDS, growing=growing)]
    share = rates[0] * MOST_TIMES * PROBE_SECONDS / LEAST_INPUTS  # samples there is time for, an input
    n, note = max(1, min(PLAN_PILOT, int(share))), ""
    planned, search = isinstance(sampler, Plan) and n >= FEWEST_SAMPLES, policy.kind == "search"
    if isinstance(sampler, Plan) and not planned:
        note = "the model is too slow to see in a probe what the planner will take: at most this"
    elif planned and search and policy.forwards + n > share:
        note = "the model is too slow to search sigma in a probe: inputs were looked at with sigma0"
    search = search and planned and not note
    asked.smoothed = smoothed.with_block_size(min(rows, n) if growing else rows)
    samples, start = list[float](), time.perf_counter()
    for i in order:
        began = time.perf_counter()
        pilot = asked.pilot(i, asked.sigma(i, search=search), n)
        rates.append((policy.forwards * search + n) / (time.perf_counter() - began))
        samples.append(float(policy.forwards + (asked.planned(pilot) if planned else sampler.largest())))
        if time.perf_counter() - start > PROBE_SECONDS * (1.0 if len(samples) >= LEAST_INPUTS else MOST_TIMES):
            break
    mean, error = float(np.mean(samples)), 1.96 * float(np.std(samples)) / len(samples) ** 0.5
    low = max(0.0, mean - error)
    if isinstance(sampler, Target) or (isinstance(sampler, Plan) and not planned):
        low = float(policy.forwards + sampler.pilot)
    total = (len(ids) * low, len(ids) * mean, len(ids) * (mean + error))
    slow, middle, fast = np.quantile(rates, [0.1, 0.5, 0.9]).tolist()
    seconds = (total[0] / fast, total[1] / middle, total[2] / slow)
    return Forecast(inputs=len(ids), probed=len(samples), samples=total, seconds=seconds, note=note)


@dataclass
class _Asked:
    """What is asked of every input that is looked at."""

    smoothed: SmoothedClassifier
    data: Dataset
    ids: list[int]
    policy: SigmaPolicy
    sampler: Sampler
    alpha: float
    rule: Rule

    def sigma(self, i: int, *, search: bool) -> float:
        """That of one input; sigma0 in place of one that is not searched."""
        policy, x = self.policy, self.data[[i]][0]
        if policy.rule is not None:
            return policy.usual
        if policy.kind != "search":
            assert policy.sigma is not None
            return float(check_sigma(policy.sigma, len(self.ids))[self.ids.index(i)])
        assert policy.sigma0 is not None
        if not search:
            return policy.sigma0
        options = {**policy.config(), "sigma0": policy.sigma0, "n": self.sampler.largest(), "alpha": self.alpha}
        return float(search_sigma(self.smoothed, x, **options, ids=[i]).sigma[0])

    def pilot(self, i: int, sigma: float, n: int) -> Measurement:
        """So many samples of one input, counted as a run's pilot counts."""
        tally, batch = self.rule.pilot_tally(self.smoothed.num_classes), self.smoothed.prepare(self.data[[i]][0], [i])
        request = Request(row=0, sigma=sigma, stream=Stream.PILOT, n=n, tally=tally.kind, anchor=tally.anchor)
        return measured("pilot", sigma, tally, self.smoothed.count(batch, [request], checked_seed(None))[0])

    def planned(self, pilot: Measurement) -> int:
        """What the planner takes in all where its own pilot shows what this one does."""
        assert isinstance(self.sampler, Plan)
        plan, top, linear = self.sampler, self.rule.choose(pilot), self.smoothed.certificate.norm == "l1"
        fewest, needed = round(self.rule.fewest(pilot, top) * plan.pilot / pilot.n), self.rule.needed(pilot, top)
        share = self.rule.share(self.alpha)
        return plan.pilot + planned_samples(fewest, plan.pilot, share, plan.n_max, plan.price, linear, needed)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
