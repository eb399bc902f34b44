"""What a certification would cost, from a short probe. It writes nothing and its noise is thrown away."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ddsmoothing.campaigns.policy import SigmaPolicy
from ddsmoothing.claims import Rule
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.data import Dataset
from ddsmoothing.inputs import check_sigma
from ddsmoothing.plan import Plan, Sampler, Target, planned_samples
from ddsmoothing.sigma.search import search_sigma

PROBE_SECONDS = 2.0
PROBE_SAMPLES = 2000
LEAST_INPUTS = 3

Range = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Samples and seconds of a whole run.

    Attributes:
        inputs: of the run.   probed: inputs looked at.
        samples: (low, expected, high): 95 % interval of the mean over inputs, times their number.
        seconds: the same at the fastest, the middle and the slowest rate seen.
    """

    inputs: int
    probed: int
    samples: Range
    seconds: Range

    def text(self) -> str:
        """Two lines for people."""
        low, mean, high = self.samples
        samples = f"{mean:,.0f}" if low == high else f"{mean:,.0f} ({low:,.0f} to {high:,.0f})"
        times = [_duration(value) for value in self.seconds]
        return (
            f"{self.inputs} inputs: {samples} samples\n"
            f"time {times[1]} ({times[0]} to {times[2]}), probed on {self.probed} inputs"
        )


def forecast(
    smoothed: SmoothedClassifier,
    data: Dataset,
    ids: list[int],
    policy: SigmaPolicy,
    sampler: Sampler,
    alpha: float,
    rule: Rule,
) -> Forecast:
    """Probe inputs spread over the run for two seconds.

    What the sampler ``target`` will take is not known before; the range then goes from its pilot to the most.
    """
    samples, rates = [], []
    start = time.perf_counter()
    for i in np.random.default_rng(0).permutation(ids).tolist():
        began = time.perf_counter()
        count, needed = _pilot(smoothed, data, i, policy, ids)
        rates.append((policy.forwards + PROBE_SAMPLES) / (time.perf_counter() - began))
        fresh = sampler.largest()
        if isinstance(sampler, Plan):
            share, linear = rule.share(alpha), smoothed.certificate.norm == "l1"
            planned = planned_samples(
                round(count * sampler.pilot / PROBE_SAMPLES),
                sampler.pilot,
                share,
                sampler.n_max,
                sampler.price,
                linear,
                needed,
            )
            fresh = sampler.pilot + planned
        samples.append(float(policy.forwards + fresh))
        if len(samples) >= LEAST_INPUTS and time.perf_counter() - start > PROBE_SECONDS:
            break
    mean, error = float(np.mean(samples)), 1.96 * float(np.std(samples)) / len(samples) ** 0.5
    low = float(policy.forwards + sampler.pilot) if isinstance(sampler, Target) else max(0.0, mean - error)
    total = (len(ids) * low, len(ids) * mean, len(ids) * (mean + error))
    slow, middle, fast = np.quantile(rates, [0.1, 0.5, 0.9]).tolist()
    seconds = (total[0] / fast, total[1] / middle, total[2] / slow)
    return Forecast(inputs=len(ids), probed=len(samples), samples=total, seconds=seconds)


def _pilot(
    smoothed: SmoothedClassifier, data: Dataset, i: int, policy: SigmaPolicy, ids: list[int]
) -> tuple[int, float]:
    """Choose sigma for one input and count what its answer hangs on among PROBE_SAMPLES; and what is needed of it."""
    x, _ = data[[i]]
    if policy.kind == "search":
        assert policy.sigma0 is not None
        sigma = search_sigma(smoothed, x, **{**policy.config(), "sigma0": policy.sigma0}, ids=[i]).sigma
    else:
        assert policy.sigma is not None
        sigma = check_sigma(policy.sigma, len(ids))[[ids.index(i)]]
    found = smoothed.predict(x, sigma, n=PROBE_SAMPLES, ids=[i])
    pilot, fresh = found.pilots[0], found.fresh[0]
    assert fresh is not None
    rule, top = found.rule, found.rule.choose(pilot)
    if smoothed.offsets is None:
        return min(rule.counts(fresh, top)), 0.5
    return round(rule.fewest(pilot, top) * PROBE_SAMPLES / pilot.n), rule.needed(pilot, top)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
