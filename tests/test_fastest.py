"""The fastest form of a model: how it is chosen, and that claims are about that form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.campaigns import fastest
from ddsmoothing.errors import ModelError

DEMO = ("certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", "0.5")
FEW = ("--n0", "20", "--n", "300", "--max", "8", "--seed", "3", "--block-size", "64")
BF16 = ("bf16", True)


class Near(torch.nn.Module):
    """Class 1 by so little that bf16 does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.0, 1.001]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale.expand(len(x), 2) * torch.ones_like(x).flatten(1)[:, :1]


def chosen(monkeypatch: pytest.MonkeyPatch, form: tuple[str, bool]) -> None:
    monkeypatch.setattr(fastest, "chosen_form", lambda rate, images: form)


def rows(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("rates", "images", "form"),
    [
        ((100, 100, 100, 100), True, ("fp32", False)),
        ((100, 104, 104, 104), True, ("fp32", False)),  # too little to leave the plain form for
        ((100, 120, 10, 11), True, ("fp32", True)),
        ((100, 120, 200, 205), True, ("bf16", False)),
        ((100, 90, 200, 400), True, ("bf16", True)),
        ((100, 900, 200, 900), False, ("bf16", False)),
        ((100, 90, None, None), True, ("fp32", False)),
    ],
)
def test_the_form_is_the_plainest_of_the_fastest(
    rates: tuple[float | None, ...], images: bool, form: tuple[str, bool]
) -> None:
    def rate(asked: tuple[str, bool]) -> float:
        found = rates[fastest.FORMS.index(asked)]
        if found is None:
            raise ModelError("it cannot be cast")
        return found

    assert fastest.chosen_form(rate, images=images) == form


def test_a_model_that_cannot_be_asked_as_it_is_is_named(data: dds.Dataset) -> None:
    broken = dds.SmoothedClassifier(torch.nn.Linear(3, 2), dds.L2Certificate(), num_classes=2)
    with pytest.raises(ModelError, match="does not take inputs"):
        dds.fastest_form(broken, data[:1][0])


def test_a_bare_callable_has_one_form(data: dds.Dataset) -> None:
    bare = dds.SmoothedClassifier(lambda x: x.flatten(1)[:, :10], dds.L2Certificate(), num_classes=10)
    assert dds.fastest_form(bare, data[:1][0]) is bare


def test_all_forms_are_timed_and_everything_else_stays(model: torch.nn.Module, data: dds.Dataset) -> None:
    before = dds.SmoothedClassifier(
        model, dds.L1Certificate(), num_classes=10, vote="plurality", block_size=8, snap=True
    )
    after = dds.fastest_form(before, data[:1][0])
    assert (after.precision, after.channels_last) in fastest.FORMS
    for name in (
        "model",
        "certificate",
        "num_classes",
        "vote",
        "block_size",
        "compiled",
        "snap",
        "levels",
        "any_range",
    ):
        assert getattr(after, name) == getattr(before, name)
    assert next(model.parameters()).dtype == torch.float32


def test_what_is_claimed_is_of_the_form_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    plain = dds.SmoothedClassifier(Near(), dds.L2Certificate(), num_classes=2)
    chosen(monkeypatch, BF16)
    fast = dds.fastest_form(plain, x)
    assert (fast.precision, fast.channels_last) == BF16
    assert plain.certify(x, 0.5, n=100, seed=0).prediction.tolist() == [1]
    result = fast.certify(x, 0.5, n=100, seed=0)
    assert result.prediction.tolist() == [0]
    named = dds.SmoothedClassifier(Near(), dds.L2Certificate(), num_classes=2, precision="bf16", channels_last=True)
    np.testing.assert_array_equal(result.counts, named.certify(x, 0.5, n=100, seed=0).counts)
    assert fast.predict(x, 0.5, n=100, seed=0).prediction.tolist() == [0]


def test_a_fast_run_is_one_in_that_form_and_goes_on_in_it(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(monkeypatch, BF16)
    (tmp_path / "fast").mkdir()  # an empty folder is a new run too
    answer = cli(*DEMO, *FEW, "--fast", "--out", tmp_path / "fast")
    assert answer.code == 0, answer.err
    assert "--precision bf16 --channels-last" in answer.err
    header = json.loads((tmp_path / "fast" / "header.json").read_text())
    assert (header["precision"], header["channels_last"]) == BF16
    assert cli(*DEMO, *FEW, "--precision", "bf16", "--channels-last", "--out", tmp_path / "named").code == 0
    whole = rows(tmp_path / "named")
    assert rows(tmp_path / "fast") == whole
    chosen(monkeypatch, ("fp32", False))  # another machine would choose this
    results = tmp_path / "fast" / "results.jsonl"
    for options in ((), (*DEMO[1:], *FEW, "--fast")):
        results.write_text("".join(line + "\n" for line in results.read_text().splitlines()[:5]))
        again = cli("certify", *options, "--out", tmp_path / "fast")
        assert again.code == 0, again.err
        assert rows(tmp_path / "fast") == whole


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--precision", "fp32"), "got --precision too"),
        (("--channels-last",), "got --channels-last too"),
        (("--shard", "1/2"), "another form for each shard"),
    ],
)
def test_fast_beside_a_form_or_shards_is_refused(
    cli: Callable, tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    answer = cli(*DEMO, *FEW, "--fast", *options, "--out", tmp_path / "run")
    assert (answer.code, text in answer.err) == (2, True)
    assert not (tmp_path / "run").exists()
