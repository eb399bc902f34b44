"""What may be left out in Python, and what may stand where a tensor, a certificate or a callable is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.progress import SampleProgress, telling

N = 200


class Bar:
    """As tqdm is: updated, and not called."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, n: int = 1) -> bool:
        self.n += n
        return True


def test_a_model_is_enough(model: torch.nn.Module, smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x, _ = data[:3]
    alone = dds.SmoothedClassifier(model)
    found = alone.certify(x, 0.25, n0=20, n=N, seed=0)
    assert (found.norm, found.vote, found.num_classes, alone.num_classes) == ("l2", "pairwise", 10, 10)
    assert found.counts.tolist() == smoothed.certify(x, 0.25, n0=20, n=N, seed=0).counts.tolist()


def test_the_number_of_classes_is_found_once_for_all_forms(model: torch.nn.Module, data: dds.Dataset) -> None:
    calls: list[int] = []

    def counting(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return model(x)

    alone = dds.SmoothedClassifier(counting, check=False)
    other = alone.with_block_size(8)
    with pytest.raises(InputError, match="give num_classes=K"):
        alone.num_classes  # noqa: B018
    other.prepare(data[:2][0])
    assert alone.num_classes == other.num_classes == 10
    assert calls == [1]
    alone.prepare(data[:2][0])
    assert calls == [1]


def test_offsets_say_how_many_classes_there_are(model: torch.nn.Module) -> None:
    assert dds.SmoothedClassifier(model, offsets=[0.0] * 10).num_classes == 10


def test_one_logit_is_no_classifier(data: dds.Dataset) -> None:
    with pytest.raises(ModelError, match="1 logit"):
        dds.SmoothedClassifier(lambda x: x.flatten(1)[:, :1]).certify(data[:1][0], 0.25, n=N)


@pytest.mark.parametrize(("name", "norm"), [("l1", "l1"), ("L2", "l2"), ("l2", "l2")])
def test_a_norm_stands_for_its_certificate(model: torch.nn.Module, name: str, norm: str) -> None:
    assert dds.SmoothedClassifier(model, name).certificate.norm == norm


@pytest.mark.parametrize("wrong", ["linf", 2, None])
def test_other_certificates_are_refused(model: torch.nn.Module, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"norm 'linf'|expected 'l2', 'l1', L2Certificate"):
        dds.SmoothedClassifier(model, wrong)


def test_arrays_and_tensors_are_the_same(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    counts = [
        smoothed.certify(x, 0.25, n0=20, n=N, seed=0).counts.tolist()
        for x in (data.x[:2], data[:2][0], data[:2][0].numpy(), torch.from_numpy(data.x[:2]))
    ]
    assert counts == counts[:1] * 4


@pytest.mark.parametrize("what", ["image", "pixels"])
def test_one_image_is_told_to_be_a_batch(smoothed: dds.SmoothedClassifier, data: dds.Dataset, what: str) -> None:
    x = data[0][0]
    with pytest.raises((ModelError, InputError), match=r"x\[None\]"):
        smoothed.certify(x if what == "image" else x.flatten(), 0.25, n0=20, n=N)


def test_progress_may_be_a_callable_a_bar_or_true(
    smoothed: dds.SmoothedClassifier, data: dds.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, seen, bar, told = data[:2][0], list[int](), Bar(), list[int]()
    monkeypatch.setattr(SampleProgress, "__call__", lambda self, n: told.append(n))
    for progress in (seen.append, bar, True, False, None):
        smoothed.certify(x, 0.25, n0=20, n=N, seed=0, progress=progress)
    assert sum(seen) == bar.n == sum(told) == 2 * (20 + N)
    smoothed.predict(x, 0.25, n0=20, n=N, progress=True)
    assert sum(told) == 4 * (20 + N)
    dds.search_sigma(smoothed, x, sigma0=0.25, progress=True)
    assert sum(told) == 4 * (20 + N) + 2 * dds.search_sigma(smoothed, x, sigma0=0.25).forwards


def test_other_progress_is_refused(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    with pytest.raises(InputError, match="expected True, a callable, or a bar such as tqdm"):
        smoothed.certify(data[:1][0], 0.25, n=N, progress="bar")  # type: ignore[arg-type]


def test_a_bar_writes_to_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 11.0, 20.0])
    monkeypatch.setattr("ddsmoothing.progress.time.monotonic", lambda: next(now))
    with telling(True, 100, "certifying") as told:
        assert told is not None
        told(25)
        told(25)
        told(25)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "certifying: 25 %, 2.50 samples/s, 30 s left",
        "certifying: 75 %, 3.75 samples/s, 7 s left",
    ]


def test_a_run_without_a_number_of_classes(model: torch.nn.Module, data: dds.Dataset, tmp_path: Path) -> None:
    run = dds.certify_run(
        dds.SmoothedClassifier(model),
        data,
        dds.CertifyRequest(0.25, n0=20, n=N, skip=300),
        tmp_path / "run",
        model_name="m",
        progress=Bar(),
    )
    assert run.header.num_classes == 10 and len(run) == 4


def test_labels_judge_a_certification(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x, y = data[:4]
    found = smoothed.certify(x, 0.25, n0=20, n=N, seed=0)
    accuracy = dds.certified_accuracy(found, [0.0, 9.0], labels=y)
    assert accuracy.tolist() == [float(np.mean(found.prediction == y.numpy())), 0.0]
