"""What Python users hand in: arrays, tensors, tuples, labels, policies. What is clear is taken; else one line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.data import Dataset, as_dataset
from ddsmoothing.errors import DdsmoothingWarning, InputError, ShapeError
from ddsmoothing.labels import checked_labels
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.tables.facts import class_names
from reference import Half

THREE = np.array([2, 0, 1])


class Column:
    """A column of a data frame, as far as arrays are concerned."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def to_numpy(self) -> np.ndarray:
        return self.values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


class TestLabels:
    @pytest.mark.parametrize(
        "y",
        [THREE, THREE.astype(np.uint8), THREE.tolist(), tuple(THREE.tolist()), torch.tensor([2, 0, 1]), Column(THREE)],
    )
    def test_whole_numbers_in_any_form(self, y: Any) -> None:
        found = checked_labels(y, 3, 3)
        assert (found.dtype, found.tolist()) == (np.int64, [2, 0, 1])

    def test_a_tensor_that_is_differentiated(self) -> None:
        with pytest.raises(InputError, match="labels are float32"):
            checked_labels(torch.zeros(3, requires_grad=True), 3)

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            ([0, -1, 1], "a label is -1, expected classes 0, 1, ..; for data without labels give none at all"),
            (np.full(3, -1), "a label is -1"),
            ([0, 99, 1], r"label 99 is out of range for a model with 3 classes \(0..2\)"),
            ([0, 3, 1], "label 3 is out of range"),
            ([0.0, 3.7, 1.0], "labels are float64, such as '0.0', expected whole numbers"),
            ([0.0, 1.0, 1.0], "labels are float64"),
            (["cat", "dog", "cat"], "labels are <U3, such as 'cat'"),
            ([True, False, True], "labels are bool"),
            ([None, 0, 1], "labels are object, such as 'None'"),
            ([0, 2**64, 1], "labels are object"),
            (np.array([0, 2**64 - 1, 1], np.uint64), "out of range"),
            ([0, 1], r"labels have shape \(2,\), expected \(3,\)"),
            (1, r"labels have shape \(\), expected \(3,\), .*for one input give x\[None\] and \[1\]"),
            ("cat", r"labels have shape \(\)"),
            ([[0], [1], [2]], r"labels have shape \(3, 1\)"),
            ([[0], [1, 2], 3], "labels are list, expected 3 whole numbers"),
            ({"a": 1}, r"labels have shape \(\)"),
        ],
    )
    def test_anything_else_is_one_line(self, y: Any, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            checked_labels(y, 3, 3)
        assert "\n" not in str(error.value)


BAD_LABELS = ([0] * 11 + [-1], ["a"] * 12, [3.7] * 12, [99] * 12, 0)


def test_bad_labels_are_refused_before_anything_is_drawn(
    linear: dds.SmoothedClassifier, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """Wherever labels come in: a data set, a run, one call, and results judged afterwards."""
    drawn: list[int] = []
    result = linear.certify(pixels, 0.1, n=50, seed=0)
    for y in BAD_LABELS:
        with pytest.raises(InputError, match="label"):
            certify_run(
                linear, (pixels, y), CertifyRequest(0.1), tmp_path / "run", model_name="half", progress=drawn.append
            )
        with pytest.raises(InputError, match="label"):
            linear.certify(pixels, 0.1, n=50, labels=y, seed=0, progress=drawn.append)
        with pytest.raises(InputError, match="label"):
            result.outcome(y)
    assert not drawn
    assert not (tmp_path / "run").exists()


def test_an_input_without_a_label_never_counts_as_correct(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    """-1 is abstention; a data set without labels gives -1, which equals it where the classifier abstained."""
    result = linear.certify(pixels, 0.5, n=40, seed=0)
    assert result.abstained.any()
    data = Dataset(name="a", split="test", x=pixels, y=None)
    with pytest.raises(InputError, match="for data without labels give none"):
        dds.certified_accuracy(result.outcome(data[:][1]), [0.0])


class TestData:
    @pytest.mark.parametrize("form", ["tuple", "tensors", "TensorDataset", "columns", "Dataset"])
    def test_what_is_clear_is_taken(
        self, form: str, linear: dds.SmoothedClassifier, pixels: torch.Tensor, tmp_path: Path
    ) -> None:
        x, y = pixels.numpy(), np.arange(12) // 6
        given = {
            "tuple": (x, y),
            "tensors": (pixels, torch.from_numpy(y)),
            "TensorDataset": TensorDataset(pixels, torch.from_numpy(y)),
            "columns": (Column(x), Column(y)),
            "Dataset": Dataset(name="arrays", split="test", x=x, y=y),
        }[form]
        run = certify_run(linear, given, CertifyRequest(0.1, n=100, seed=0), tmp_path / "run", model_name="half")
        assert [row.label for row in run.rows] == y.tolist()
        assert {row.noise for row in run.rows} == {"grid"}
        assert run.header.data.name == "arrays"
        assert run.header.data.labels_sha256 is not None

    def test_names_of_classes_reach_the_run_and_its_tables(
        self, linear: dds.SmoothedClassifier, pixels: torch.Tensor, tmp_path: Path
    ) -> None:
        data = Dataset(name="a", split="test", x=pixels, y=np.arange(12) // 6, classes=("dark", "bright"))
        for _ in range(2):  # the second time it is continued
            run = certify_run(linear, data, CertifyRequest(0.1, n=100, seed=0), tmp_path / "run", model_name="half")
            assert class_names(run) == ("dark", "bright")

    @pytest.mark.parametrize(
        "given", [np.zeros((2, 3)), torch.zeros(2, 3), (np.zeros((2, 3)),), (np.zeros((2, 3)), None)]
    )
    def test_inputs_without_labels(self, given: Any) -> None:
        data = as_dataset(given)
        assert (data.y, data.x.dtype, len(data)) == (None, np.float32, 2)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([np.zeros(3), np.zeros(3)], "the data are list, expected a Dataset, "),
            ("data.npz", "the data are str, expected a Dataset"),
            ({"x": 1}, "the data are dict"),
            ((1, 2, 3), "the data are 3 parts"),
            ((torch.zeros(2, 3), [0, 1], [0, 1]), "the data are 3 parts"),
            (([[0.0, 1.0]], [0]), "the data are 2 parts"),
            (iter([1]), "the data are list_iterator"),
            ((torch.zeros(3), 0), r"shape \(3,\).*one input is a batch of one, x\[None\]"),
            ((torch.zeros(3, 8, 8), 0), r"for one input give x\[None\] and \[0\]"),
            ((np.zeros((2, 3), np.int64), [0, 1]), "the inputs are int64, expected uint8, uint16 or floating point"),
            ((np.full((2, 3), np.inf), [0, 1]), "NaN or infinity"),
            ((np.zeros((2, 0)), [0, 1]), "not empty"),
            ((np.array([["a"], ["b"]]), [0, 1]), "the inputs are <U1"),
        ],
    )
    def test_what_is_not_is_one_line(
        self, given: Any, message: str, linear: dds.SmoothedClassifier, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=message) as error:
            certify_run(linear, given, CertifyRequest(0.1), tmp_path / "run", model_name="half")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_tensors_of_any_kind_become_float32(self) -> None:
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            x = torch.full((2, 3), 0.5, dtype=dtype, requires_grad=True)
            assert as_dataset(x)[:][0].equal(torch.full((2, 3), 0.5))


class TestRange:
    @pytest.mark.parametrize(
        "x",
        [
            torch.full((2, 3), 0.5) * 255,
            (torch.full((2, 3), 0.5) - 0.9) / 0.2,
            torch.tensor([[0.0, 1.01, 0.5]]),
            torch.tensor([[-0.01, 1.0, 0.5]], dtype=torch.float64),
            np.array([[0.0, 200.0, 3.0]]),
        ],
    )
    def test_pixels_outside_the_unit_interval_are_refused(self, x: Any, half: Half, tmp_path: Path) -> None:
        """As the command line refuses them; it can be lifted, and that is kept."""
        smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
        for call in (
            lambda: smoothed.certify(x, 0.25, n=50),
            lambda: smoothed.predict(x, 0.25, n=50),
            lambda: dds.search_sigma(smoothed, x, sigma0=0.25),
            lambda: certify_run(smoothed, (x, None), CertifyRequest(0.25), tmp_path / "run", model_name="half"),
        ):
            with pytest.raises(InputError, match=r"the inputs lie in \[.*\], expected \[0, 1\]: divide") as error:
                call()
            assert "\n" not in str(error.value)
        lifted = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, any_range=True)
        assert lifted.prepare(x).any_range
        assert len(lifted.predict(torch.as_tensor(x).float(), 0.25, n=50)) == len(x)

    def test_roundings_and_stated_grids_are_in_range(self, half: Half) -> None:
        smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
        over = torch.tensor([[0.0, 1.0 + 1e-12], [-1e-15, 0.5]], dtype=torch.float64)
        coarse = torch.nextafter(torch.ones(1, 2), torch.full((1, 2), 2.0)).bfloat16() + 0.0
        for x in (over, over.float(), coarse, torch.ones(1, 2, dtype=torch.float16)):
            assert not smoothed.prepare(x).any_range
        columns = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, levels=10)
        assert columns.prepare(torch.tensor([[-3.5, 120.0, 0.1]])).on_grid.all()

    def test_a_stated_grid_that_inputs_miss_is_said(self, half: Half) -> None:
        """And only then: not on the default grid, not where inputs are moved to it, not where they lie on it."""
        x = torch.tensor([[0.1, 0.25, 0.333]])
        columns = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, levels=20)
        with pytest.warns(DdsmoothingWarning, match=r"stated grid of 20 steps .* float noise.*snap=True"):
            assert columns.certify(x, 0.25, n=50).noise == ("float",)
        for smoothed in (
            dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2),
            dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, levels=20, snap=True),
            dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, levels=1000),
        ):
            smoothed.certify(x, 0.25, n=50)

    def test_arrays_are_inputs(self, linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
        """Read-only and reversed ones too, and none of them is changed."""
        x = pixels.numpy()[::-1]
        x.setflags(write=False)
        same = linear.certify(pixels.flip(0), 0.25, n=100, seed=0)
        assert linear.certify(x, 0.25, n=100, seed=0).counts.tolist() == same.counts.tolist()  # type: ignore[arg-type]
        with pytest.raises(ShapeError, match=r"x\[None\]"):
            linear.certify(x[0], 0.25, n=100)  # type: ignore[arg-type]


def test_warnings_are_one_line_on_the_command_line(cli: Callable[..., Any], npz: Callable[..., Path]) -> None:
    x = np.full((2, 1, 28, 28), 0.123, np.float32)
    command = ("--model", "fashion-mnist-cnn", "--data", npz(x=x, y=np.zeros(2, int)), "--levels", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        answer = cli("predict", *command, "--sigma", 0.25, "--n", 50, "--seed", 0)
    assert answer.code == 0
    assert [line[:45] for line in answer.err.splitlines() if line.startswith("note")] == [
        "note: some inputs do not lie on the stated gri"[:45]
    ]


@pytest.mark.parametrize("sigma", ["search", None, True, [0.25]])
def test_what_is_no_sigma_is_refused(sigma: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"sigma is {sigma!r}, expected a number, SigmaPolicy.")) as error:
        CertifyRequest(sigma)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("request_", [0.25, "search", SigmaPolicy.fixed(0.25)])
def test_what_is_no_request_is_refused(
    request_: Any, linear: dds.SmoothedClassifier, pixels: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the request is .*, expected CertifyRequest\(sigma, \.\.\)"):
        certify_run(linear, (pixels, [0] * 12), request_, tmp_path / "run", model_name="half")
