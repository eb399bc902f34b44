"""What a run is asked for: as a value, as a file, and out of a run's header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing import CertifyRequest, SigmaPolicy, certify_run
from ddsmoothing.claims import PairTable
from ddsmoothing.errors import InfeasibleError, InputError, RunError, SigmaError
from run_helpers import rows_of, small_data, small_smoothed

REQUESTS = (
    CertifyRequest(0.25),
    CertifyRequest(np.float64(0.5), n0=20, n=np.int64(400), alpha=1e-5, seed=2**63, label_aware=True),
    CertifyRequest(
        SigmaPolicy.search(0.3), n_max=2000, skip=2, maximum=3, units='standard "deviations" \n \x7f \u00e9 \U0001f600'
    ),
    CertifyRequest(SigmaPolicy.search(0.3, sigma_grid=[0.5, 0.3, 0.1]), radii=[0.1, 0.25], shard=(2, 3), seed=1),
    CertifyRequest(SigmaPolicy.search(0.3, 0.1, 0.9), n=500, bound="two-class", randomized=True),
)


@pytest.mark.parametrize("asked", REQUESTS)
def test_a_request_is_the_same_in_a_file(asked: CertifyRequest, tmp_path: Path) -> None:
    assert CertifyRequest.load(asked.save(tmp_path / "run.toml")) == asked


def test_given_sigmas_stand_in_the_file(tmp_path: Path) -> None:
    sigma = np.array([0.1, 1 / 3, 0.2])
    again = CertifyRequest.load(CertifyRequest(SigmaPolicy.given(sigma)).save(tmp_path / "run.toml")).policy
    x = small_data()[[0, 1]][0]
    chosen, found = again.choose(small_smoothed(), x, [2, 1], ids=[0, 1], n=1, alpha=0.5, seed=0)
    assert (chosen.tolist(), found) == ([0.2, 1 / 3], None)
    assert again.config() == SigmaPolicy.given(sigma).config()


@pytest.mark.parametrize("policy", [0.3, SigmaPolicy.search(0.3), SigmaPolicy.search(0.3, sigma_grid=[0.2, 0.3])])
@pytest.mark.parametrize("samples", [{"n0": 20, "n": 300}, {"n_max": 400}, {"radii": [0.1, 0.2]}])
def test_a_run_is_continued_as_it_was_asked_for(policy: Any, samples: dict[str, Any], tmp_path: Path) -> None:
    """Without a request, and from what its header says: the rows are those of a run never stopped."""
    asked = CertifyRequest(policy, **samples, skip=2, seed=4)
    whole = certify_run(small_smoothed(), small_data(), asked, tmp_path / "whole", model_name="half")
    said = CertifyRequest.of(whole.header)
    assert said.policy == asked.policy.settled(small_smoothed())
    assert (said.sampler, said.alpha, said.skip, said.seed) == (asked.sampler, asked.alpha, 2, 4)
    lines = (tmp_path / "whole" / "results.jsonl").read_text().splitlines(keepends=True)
    rows = rows_of(tmp_path / "whole")
    (tmp_path / "whole" / "results.jsonl").write_text("".join(lines[:1]))
    certify_run(small_smoothed(), small_data(), None, tmp_path / "whole", model_name="half")
    assert rows_of(tmp_path / "whole") == rows


def test_without_a_request_there_has_to_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run that could be continued, expected a CertifyRequest"):
        certify_run(small_smoothed(), small_data(), None, tmp_path / "run", model_name="half")
    asked = CertifyRequest(SigmaPolicy.given(np.full(8, 0.3)), n0=20, n=100)
    certify_run(small_smoothed(), small_data(), asked, tmp_path / "run", model_name="half")
    with pytest.raises(RunError, match="the sigmas of this run are from a file"):
        certify_run(small_smoothed(), small_data(), None, tmp_path / "run", model_name="half")


WRONG: dict[str, tuple[Callable[[], Any], type[InputError], str]] = {
    "count": (lambda: CertifyRequest(0.5, n="9"), InputError, "n is '9', expected a whole number"),  # type: ignore[arg-type]
    "skip": (lambda: CertifyRequest(0.5, skip=0), InputError, "skip is 0"),
    "truth": (lambda: CertifyRequest(0.5, randomized=1), InputError, "randomized is 1, expected True or False"),  # type: ignore[arg-type]
    "alpha": (lambda: CertifyRequest(0.5, alpha="a"), InputError, "alpha is 'a', expected a failure probability"),  # type: ignore[arg-type]
    "units": (lambda: CertifyRequest(0.5, units=3), InputError, "units are 3, expected a text"),  # type: ignore[arg-type]
    "shard": (lambda: CertifyRequest(0.5, shard=(1,)), InputError, r"shard is \(1,\), expected 2 numbers"),  # type: ignore[arg-type]
    "radii": (lambda: CertifyRequest(0.5, radii=0.5), InputError, "radii is 0.5, expected a list of numbers"),  # type: ignore[arg-type]
    "samples": (lambda: CertifyRequest(0.5, n=100, n_max=5), InputError, "n_max is for the planning sampler"),
    "few": (lambda: CertifyRequest(0.5, n=5), InfeasibleError, "n=5"),
    "sigma": (lambda: CertifyRequest(-1.0), SigmaError, "sigma is -1.0"),
    "large sigma": (lambda: CertifyRequest(10**400), SigmaError, "expected one number"),
    "many": (lambda: CertifyRequest(0.5, n=10**400), InputError, "n is above"),
    "no skip": (lambda: CertifyRequest(0.5, skip=None), InputError, "skip is None"),  # type: ignore[arg-type]
    "truth as sigma": (lambda: SigmaPolicy.fixed(True), SigmaError, "sigma is True, expected a number"),
    "start": (lambda: SigmaPolicy.search("x"), SigmaError, "sigma is 'x'"),  # type: ignore[arg-type]
    "no start": (lambda: SigmaPolicy.search(None), SigmaError, "sigma is nan"),  # type: ignore[arg-type]
    "end": (lambda: SigmaPolicy.search(0.3, np.nan, 0.5), SigmaError, "sigma is nan"),
    "set and range": (lambda: SigmaPolicy.search(0.3, 0.1, sigma_grid=[0.3]), InputError, "no sigma_min and sigma_max"),
    "empty set": (lambda: SigmaPolicy.search(0.3, sigma_grid=[]), InputError, "sigma_grid is empty"),
    "mixed set": (lambda: SigmaPolicy.search(0.3, sigma_grid=["a", None]), SigmaError, "expected one number"),  # type: ignore[list-item]
    "digest": (lambda: SigmaPolicy.given(np.array([0.3]), sha256="zz"), InputError, "64 hex digits"),
    "no sigmas": (lambda: SigmaPolicy.given(None), SigmaError, "sigma is nan"),  # type: ignore[arg-type]
    "rule": (lambda: SigmaPolicy.stateless(None), InputError, "the rule is NoneType, expected one that a run can"),  # type: ignore[arg-type]
    "rule of another kind": (lambda: SigmaPolicy.stateless(_Tilted.one(0.5, (0.0, 0.0))), InputError, "is _Tilted"),
}


class _Tilted(PairTable):
    """Its header would be that of a pair table."""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(name: str) -> None:
    make, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as error:
        make()
    assert "\n" not in str(error.value)


FILES = {
    "sigma = 0.5\nskp = 3\n": "unknown field 'skp'. Did you mean 'skip'?",
    "n = 3\n": "has no sigma, expected a number",
    "sigma = { sigma1 = 3 }\n": "expected sigma0 and, if wanted",
    "sigma = ['a']\n": "expected a list of numbers",
    "sigma = 'a'\n": "sigma is 'a', expected a number",
    "sigma = 0.5\nn = 2.5\n": "n is 2.5, expected a whole number",
    "sigma = \n": "is not TOML",
    "sigma = 0.5\nn = " + "9" * 5000 + "\n": "is not TOML",
    "sigma = [" + "9" * 400 + "]\n": "too large for a float",
    "sigma = 0.5\nradii = [" + "9" * 400 + "]\n": "too large for a float",
    "sigma = { sigma0 = 0.5, sigma_grid = [[0.1], [0.2, 0.3]] }\n": "expected one number",
    "sigma = { sigma0 = 0.5, sigma_grid = [{ a = 1 }, { a = 2 }] }\n": "expected one number",
}


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_a_wrong_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InputError) as error:
        CertifyRequest.load(tmp_path / "run.toml")
    assert FILES[text] in str(error.value) and "\n" not in str(error.value).strip()


def test_numbers_are_kept_as_the_header_takes_them(tmp_path: Path) -> None:
    asked = CertifyRequest(0.3, n0=np.int32(20), n=np.int64(100), skip=np.int64(2), alpha=np.float32(0.5))
    assert [type(value) for value in (asked.n0, asked.n, asked.skip, asked.alpha)] == [int, int, int, float]
    certify_run(small_smoothed(), small_data(), asked, tmp_path / "run", model_name="half")
    found = CertifyRequest(0.3, radii=np.array([0.25, 0.5], dtype=np.float32)).radii  # type: ignore[arg-type]
    assert found == (0.25, 0.5) and all(type(radius) is float for radius in found)


@pytest.mark.parametrize("change", [{"sampler": "best"}, {"sampler_options": {}}, {"sampler_options": {"n0": 5}}])
def test_a_run_with_an_unknown_sampler_is_not_continued(change: dict[str, Any], tmp_path: Path) -> None:
    asked = CertifyRequest(0.3, n0=20, n=100)
    run = certify_run(small_smoothed(), small_data(), asked, tmp_path / "run", model_name="half")
    with pytest.raises(RunError, match="is not known here"):
        CertifyRequest.of(run.header.model_copy(update=change))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the request .*none\.toml: No such file"):
        CertifyRequest.load(tmp_path / "none.toml")


def test_a_number_serves_wherever_a_policy_does(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    options: dict[str, Any] = {"shape": (3,), "n0": 20, "n": 200, "seed": 1, "model_id": "half"}
    answers = [
        dds.CertifiedMemory.create(None, linear, sigma, **options).query(pixels[:1]).rows[0].sigma
        for sigma in (0.25, SigmaPolicy.fixed(0.25))
    ]
    assert answers == [0.25, 0.25]
