"""Forecasts: how long they may take, and that they ask the run's own planner."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.campaigns import forecast
from ddsmoothing.counting.speed import samples_a_second
from ddsmoothing.plan import Exact, Plan, Sampler, Target
from ddsmoothing.sigma import SigmaPolicy


class Slow(torch.nn.Module):
    """So many seconds a row; keeps how many rows each pass had."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.rows = seconds, list[int]()

    def __deepcopy__(self, memo: object) -> Slow:  # so that it has no private copies
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        time.sleep(self.seconds * len(x))
        return x.flatten(1)[:, :10]


def slow_forecast(
    model: Slow, data: dds.Dataset, policy: SigmaPolicy, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> forecast.Forecast:
    monkeypatch.setattr(forecast, "PROBE_SECONDS", 0.2)
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)
    return forecast.forecast(smoothed, data, list(range(50)), policy, sampler, 0.001, smoothed.rule())


@pytest.mark.parametrize("policy", [SigmaPolicy.fixed(0.5), SigmaPolicy.search(0.5)])
@pytest.mark.parametrize("sampler", [Exact(n=1000), Plan(), Target(radii=(0.25,))])
def test_a_slow_model_is_asked_for_few_rows(
    sampler: Sampler, policy: SigmaPolicy, data: dds.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Slow(0.02)  # 50 rows a second at most; a run's pilot alone would take ten of them
    found = slow_forecast(model, data, policy, sampler, monkeypatch)
    assert sum(model.rows) * model.seconds < 4 * 0.2 * (1.0 + forecast.MOST_TIMES)
    assert found.samples[2] == 50 * (sampler.largest() + policy.forwards)
    assert found.seconds[1] > 0.9 * found.samples[1] * model.seconds
    assert ("what the planner will take" in found.text()) == isinstance(sampler, Plan)
    if not isinstance(sampler, Exact):
        assert found.samples[0] == 50 * (policy.forwards + sampler.pilot)


def test_a_model_too_slow_to_search_is_looked_at_with_sigma0(
    data: dds.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Slow(0.002)  # some 200 samples in the time for an input, of the 1,000 of a search
    monkeypatch.setattr(forecast, "LEAST_INPUTS", 1)
    monkeypatch.setattr(forecast, "FEWEST_SAMPLES", 1)
    found = slow_forecast(model, data, SigmaPolicy.search(0.25), Plan(), monkeypatch)
    assert "looked at with sigma0" in found.text()
    assert sum(model.rows) < 1000


@pytest.mark.parametrize("vote", ["pairwise", "plurality"])
def test_the_planner_of_the_run_is_asked(vote: str, model: torch.nn.Module, data: dds.Dataset) -> None:
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, vote=vote)
    result = smoothed.certify(data[:12][0], 0.5, n_max=4_000, seed=0)
    plan, policy = Plan(n_max=4_000), SigmaPolicy.fixed(0.5)
    asked = forecast.Asked(smoothed, data, list(range(12)), policy, plan, 0.001, smoothed.rule())
    assert [asked.planned(pilot) for pilot in result.pilots] == result.samples.tolist()
    assert len(set(result.samples.tolist())) > 2


def test_pilots_of_a_forecast_count_pairs_where_the_vote_is_pairwise(
    smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    asked = forecast.Asked(smoothed, data, [0, 1], SigmaPolicy.fixed(0.5), Plan(), 0.001, smoothed.rule())
    pilot = asked.pilot(1, asked.sigma(1, search=False), 64)
    assert pilot.n == 64
    assert pilot.least is not None


def test_it_is_said_at_once_what_is_done(cli: Callable) -> None:
    answer = cli("certify", "--model", "no-such-model", "--data", "fashion-mnist-sample", "--sigma", "1", "--forecast")
    assert answer.code == 2
    assert answer.err.startswith("forecast: ")


def test_passes_grow_up_to_the_rows_asked_for(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    batch, noise, model = smoothed.prepare(data[:1][0]), smoothed.certificate.noise, Slow(0.0)
    engine = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10).engine
    assert samples_a_second(engine, noise, 10, batch, 48, 1e9) > 0.0
    assert sorted(set(model.rows)) == [1, 4, 16, 48]
    model.rows.clear()
    assert samples_a_second(engine, noise, 10, batch, 48, 0.0, growing=False) > 0.0
    assert set(model.rows) == {48}
    model.rows.clear()
    assert samples_a_second(engine, noise, 10, batch, 48, 0.0) > 0.0
    assert set(model.rows) == {1}
