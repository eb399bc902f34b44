"""Sigma files: bound to data set, model and norm; the old tensor comes in and goes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.sigma import choose_sigmas, load_sigmas, save_sigmas
from ddsmoothing.sigma.files import import_tensor

MODEL = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
QUICK = ("--n0", "10", "--n", "100", "--seed", "1", "--block-size", "64")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, data = dds.load_model("fashion-mnist-cnn"), dds.load_data("fashion-mnist-sample")
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)
    path = tmp_path_factory.mktemp("sigmas") / "sigmas.json"
    save_sigmas(choose_sigmas(smoothed, data, [0, 5, 10], method="search", options={"sigma0": 0.3}, seed=1), path)
    return path


def test_a_file_holds_what_the_search_found(file: Path, smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    loaded = load_sigmas(file)
    found = dds.search_sigma(smoothed, data[[0, 5, 10]][0], sigma0=0.3, seed=1, ids=[0, 5, 10])
    np.testing.assert_array_equal(loaded.of([0, 5, 10]), found.sigma)
    assert loaded.data == data.fingerprint()
    assert (loaded.method, loaded.norm, loaded.seed) == ("search", "l2", 1)


def test_certify_takes_it_by_sample_id(cli: Callable, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = cli("certify", *MODEL, *QUICK, "--sigmas", file, "--skip", "5", "--max", "3", "--out", out)
    assert answer.code == 0, answer.err
    run = dds.load_run(out)
    np.testing.assert_array_equal(run.sigma, load_sigmas(file).of([0, 5, 10]))
    assert run.header.sigma_policy == "file"


def test_another_data_set_model_norm_or_sample_is_refused(cli: Callable, file: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x=x, y=np.zeros(20, np.int64))
    model = dds.load_model("fashion-mnist-cnn")
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    dds.models.save_model(model, dds.models.spec_of(model), tmp_path / "other.safetensors")
    base = {
        "--model": "fashion-mnist-cnn",
        "--data": "fashion-mnist-sample",
        "--sigmas": file,
        "--out": tmp_path / "run",
    }
    cases = [
        ({"--data": tmp_path / "other.npz"}, "another data set"),
        ({"--model": tmp_path / "other.safetensors"}, "another model"),
        ({"--norm": "l1"}, "another norm"),
        ({"--max": 2}, "no sigma for sample 1"),
    ]
    for changed, words in cases:
        options = [word for pair in {**base, "--max": 1, **changed}.items() for word in pair]
        answer = cli("certify", *options, *QUICK)
        assert (answer.code, words in answer.err) == (2, True), answer.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_tensor_of_2021_goes_in_and_out(cli: Callable, tmp_path: Path, norm: str) -> None:
    thetas = torch.linspace(0.1, 0.9, 1000)
    torch.save(thetas, tmp_path / "old.pth")
    options = ("--norm", norm, "--skip", "100", "--out", tmp_path / "new.json")
    assert cli("sigmas", "import", tmp_path / "old.pth", *MODEL, *options).code == 0
    loaded = load_sigmas(tmp_path / "new.json")
    scale = 3**-0.5 if norm == "l1" else 1.0
    assert sorted(loaded.sigma) == list(range(0, 1000, 100))
    for i, sigma in loaded.sigma.items():  # by index in the data set, not by position among the samples taken
        assert sigma == pytest.approx(float(thetas[i]) * scale)
    assert cli("sigmas", "export", tmp_path / "new.json", tmp_path / "back.pth").code == 0
    torch.testing.assert_close(torch.load(tmp_path / "back.pth", weights_only=True), thetas[::100])


def test_a_tensor_for_just_the_samples_taken_is_taken_in_order(tmp_path: Path) -> None:
    torch.save(torch.tensor([0.1, 0.2, 0.3]), tmp_path / "old.pth")
    np.testing.assert_allclose(import_tensor(tmp_path / "old.pth", [0, 50, 100], 1000), [0.1, 0.2, 0.3], rtol=1e-6)


@pytest.mark.parametrize(
    "content", [torch.ones(7), torch.ones(2, 2), torch.ones(10, dtype=torch.int64), {"a": 1}, -torch.ones(10)]
)
def test_a_bad_tensor_is_refused_in_one_line(cli: Callable, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "old.pth")
    answer = cli("sigmas", "import", tmp_path / "old.pth", *MODEL, "--skip", "100", "--out", tmp_path / "new.json")
    assert answer.code in (1, 2)
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "new.json").exists()


def test_pickled_code_is_never_run(cli: Callable, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Bomb(), tmp_path / "old.pth")
    answer = cli("sigmas", "import", tmp_path / "old.pth", *MODEL, "--out", tmp_path / "new.json")
    assert answer.code == 1
    assert not (tmp_path / "ran").exists()


def test_optimize_by_ascent_and_by_a_finite_set(cli: Callable, tmp_path: Path) -> None:
    ascent = ("--method", "ascent", "--iterations", "2", "--samples", "2", "--max", "3", "--seed", "1")
    assert cli("optimize", *MODEL, *ascent, "--out", tmp_path / "a.json").code == 0
    assert load_sigmas(tmp_path / "a.json").options["iterations"] == 2
    grid = ("--sigma-grid", "0.25,0.5,1", "--max", "4", "--seed", "1", "--sigma0", "0.5")
    assert cli("optimize", *MODEL, *grid, "--out", tmp_path / "g.json").code == 0
    assert set(load_sigmas(tmp_path / "g.json").sigma.values()) <= {0.25, 0.5, 1.0}
    refused = cli("optimize", *MODEL, *ascent, "--sigma-grid", "0.25,0.5", "--out", tmp_path / "b.json")
    assert (refused.code, "--method search" in refused.err) == (2, True)


def test_a_bare_callable_needs_an_id(cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callables.py").write_text("def build():\n    return lambda x: x.flatten(1)[:, :10]\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--model", "callables:build", "--data", "fashion-mnist-sample", "--sigma0", "0.3", "--max", "2")
    refused = cli("optimize", *options, "--out", tmp_path / "s.json")
    assert (refused.code, "--model-id" in refused.err) == (2, True)
    assert cli("optimize", *options, "--model-id", "first ten", "--out", tmp_path / "s.json").code == 0
    assert load_sigmas(tmp_path / "s.json").model == "id:first ten"
