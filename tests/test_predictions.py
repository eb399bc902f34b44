"""Smoothed predictions of a baseline: what they are, that they can be interrupted, and for whom they are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddsmoothing.errors import DataError, DdsmoothingError, InputError, ModelError, RunError
from ddsmoothing.training import load_predictions, make_predictions
from ddsmoothing.training import predictions as module
from ddsmoothing.training.keyed import Purpose, keys, normal
from ddsmoothing.training.predictions import predictions_for
from fuzzing import cases
from training_helpers import Told, toy_data, toy_model

OPTIONS: dict[str, Any] = {"classes": 3, "sigma": 0.3, "n": 70, "seed": 4}


def test_predictions_are_the_mean_softmax_of_n_noisy_copies(tmp_path: Path) -> None:
    model, data = toy_model(), toy_data(5)
    assert make_predictions(model, data, tmp_path / "p", **OPTIONS)
    found = load_predictions(tmp_path / "p")
    ids, x = torch.arange(5), data[:5][0]
    blocks = [normal(keys(4, Purpose.PREDICTIONS, 0, block, ids), n, (1, 6, 6)) for block, n in ((0, 64), (1, 6))]
    noise = torch.cat(blocks, dim=1)
    with torch.no_grad():
        logits = model.eval()((x[:, None] + 0.3 * noise).flatten(0, 1))
    assert torch.allclose(found.votes.float(), logits.softmax(1).reshape(5, 70, 3).mean(1), atol=1e-3)
    assert (found.source.sigma, found.source.n, found.source.seed) == (0.3, 70, 4)
    assert found.source.data == data.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


def test_a_model_that_takes_sigma_is_told_it_and_left_as_it_came(tmp_path: Path) -> None:
    model = Told().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.shift.data += 1.0
    make_predictions(model, toy_data(4), tmp_path / "p", **OPTIONS)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "shift")
    plain = load_predictions(tmp_path / "p").votes
    make_predictions(model, toy_data(4), tmp_path / "q", **{**OPTIONS, "sigma": 0.6})
    assert not torch.equal(load_predictions(tmp_path / "q").votes, plain)


def test_stopped_anywhere_they_come_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 256)  # four inputs a block
    model, data, seen = toy_model(), toy_data(30), []
    make_predictions(model, data, tmp_path / "whole", **OPTIONS)
    pieces = 1
    while not make_predictions(model, data, tmp_path / "p", **OPTIONS, progress=seen.append, stop=lambda: True):
        assert not (tmp_path / "p").exists()
        part = tmp_path / "p.part"
        part.write_bytes(part.read_bytes() + b"\x01")  # a row cut off by a crash
        pieces += 1
    assert pieces == 8
    assert seen == [4] * 7 + [2]
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()
    assert make_predictions(model, data, tmp_path / "p", **{**OPTIONS, "seed": 4})  # done already
    drawn = {**OPTIONS, "seed": 9}
    assert not make_predictions(model, data, tmp_path / "r", **drawn, stop=lambda: True)
    assert make_predictions(model, data, tmp_path / "r", **{**OPTIONS, "seed": None})
    assert load_predictions(tmp_path / "r").source.seed == 9


def test_other_predictions_are_not_overwritten(tmp_path: Path) -> None:
    model, data = toy_model(), toy_data(12)
    make_predictions(model, data, tmp_path / "p", **OPTIONS)
    before = (tmp_path / "p").read_bytes()
    for change in ({"sigma": 0.4}, {"n": 3}, {"seed": 5}):
        with pytest.raises(RunError, match="holds other predictions"):
            make_predictions(model, data, tmp_path / "p", **{**OPTIONS, **change})
    with pytest.raises(RunError, match="holds other predictions"):
        make_predictions(toy_model(seed=1), data, tmp_path / "p", **OPTIONS)
    assert (tmp_path / "p").read_bytes() == before
    (tmp_path / "q.part").write_text("what is this\n")
    with pytest.raises(RunError, match="is damaged"):
        make_predictions(model, data, tmp_path / "q", **OPTIONS)
    (tmp_path / "p").rename(tmp_path / "q")
    (tmp_path / "q.part").write_bytes(load_predictions(tmp_path / "q").source.model_dump_json().encode() + b"\n")
    (tmp_path / "q").unlink()
    with pytest.raises(RunError, match="was begun with other options"):
        make_predictions(model, data, tmp_path / "q", **{**OPTIONS, "n": 8})


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    data = toy_data(4)
    with pytest.raises(ModelError, match=r"expected logits of shape .*is num_classes=4 right"):
        make_predictions(toy_model(), data, tmp_path / "a", **{**OPTIONS, "classes": 4})
    broken = toy_model()
    broken[-1].bias.data.fill_(torch.nan)  # type: ignore[index]
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        make_predictions(broken, data, tmp_path / "b", **OPTIONS)
    with pytest.raises(InputError, match="sigma"):
        make_predictions(toy_model(), data, tmp_path / "c", **{**OPTIONS, "sigma": -1.0})
    with pytest.raises(InputError, match="model-id"):
        make_predictions(lambda x: x, data, tmp_path / "d", **OPTIONS)
    with pytest.raises(RunError, match="cannot write"):
        make_predictions(toy_model(), data, tmp_path / "none" / "p", **OPTIONS)
    with pytest.raises(DataError, match="not a readable file"):
        load_predictions(tmp_path / "none")


def test_they_are_for_one_data_set_and_number_of_classes(tmp_path: Path) -> None:
    data = toy_data(6)
    make_predictions(toy_model(), data, tmp_path / "p", **OPTIONS)
    assert len(predictions_for(str(tmp_path / "p"), data, 3).votes) == 6
    for other in (toy_data(7), dataclasses.replace(data, split="test"), dataclasses.replace(data, name="x")):
        with pytest.raises(InputError, match="made for another data set"):
            predictions_for(str(tmp_path / "p"), other, 3)
    with pytest.raises(InputError, match="made for another number of classes"):
        predictions_for(str(tmp_path / "p"), data, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictions") / "p"
    make_predictions(toy_model(), toy_data(6), path, **OPTIONS)
    return path


@cases(100)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_holds_probabilities(made: Path, data: st.DataObject) -> None:
    bad = bytearray(made.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(bad) - 1))
        bad[place] ^= 1 << data.draw(st.integers(0, 7))
    path = made.parent / "bad"
    path.write_bytes(bytes(bad))
    try:
        votes = load_predictions(path).votes
    except DdsmoothingError as error:
        assert "\n" not in str(error)
    else:
        assert bool((votes >= 0).all())
        assert torch.allclose(votes.float().sum(1), torch.ones(len(votes)), atol=0.02)
    assert path.read_bytes() == bytes(bad)


# the command


def test_the_command_writes_what_training_takes(tmp_path: Path, cli: Callable[..., Any]) -> None:
    data = toy_data(40, (1, 28, 28))
    np.savez(tmp_path / "d.npz", x=np.asarray(data.x), y=data.y)  # type: ignore[arg-type]
    places = ["--data", tmp_path / "d.npz"]
    train = ["train", *places, "--model", "small-cnn", "--epochs", 1, "--batch", 16, "--seed", 1, "--no-preflight"]
    assert cli(*train, "--sigma", 0.2, "--out", tmp_path / "base").code == 0
    asked = ["predictions", *places, "--model", tmp_path / "base" / "model.safetensors", "--sigma", 0.2, "--n", 8]
    answer = cli(*asked, "--out", tmp_path / "votes")
    assert answer.code == 0, answer.err
    assert f"{tmp_path / 'votes'}: 40 inputs" in answer.out
    catrs = [*train, "--objective", "catrs", "--copies", 2, "--predictions", tmp_path / "votes", "--sigma", 0.2]
    assert cli(*catrs, "--out", tmp_path / "catrs").code == 0
    answer = cli(*asked[:-2], "--n", 9, "--out", tmp_path / "votes")
    assert answer.code == 1
    assert answer.err.startswith("error: ")
    assert "holds other predictions" in answer.err
    answer = cli("predictions", *places, "--sigma", 0.2, "--out", tmp_path / "none")
    assert answer.err == (
        "error: expected --model, or --denoiser and --classifier; see --help for what may stand there.\n"
    )
    answer = cli(*catrs, "--max", 30, "--data", "fashion-mnist-sample", "--out", tmp_path / "other")
    assert answer.code in (1, 2)
    assert "made for another data set" in answer.err
    teacher = [*train, "--objective", "catrs", "--teacher", tmp_path / "base" / "model.safetensors", "--copies", 2]
    assert cli(*teacher, "--sigma", 0.2, "--out", tmp_path / "taught").code == 0
    own = [*train, "--objective", "catrs", "--confidence", "own", "--copies", 2, "--sigma", 0.2]
    assert cli(*own, "--out", tmp_path / "own").code == 0
