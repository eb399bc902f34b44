"""Results that show themselves: one line, a table, a data frame, JSON and back, and in parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.errors import InputError
from ddsmoothing.memory.regions import Answer, Answers
from ddsmoothing.runs import import_file
from run_helpers import small_run

N = 200


@pytest.fixture(scope="module")
def results(smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One of each kind, of the same six inputs where it has inputs."""
    x, _ = data[:6]
    search = dds.search_sigma(smoothed, x, sigma0=0.25, seed=0)
    found = {
        "SigmaSearch": search,
        "Certification": smoothed.certify(x, search, n0=20, n=N, seed=0),
        "Prediction": smoothed.predict(x, 0.25, n=N, seed=0),
        "Answers": Answers(
            rows=(
                Answer(prediction=1, radius=0.25, reason="kept", region=1, certified=0.5, attempt=1, sigma=0.5),
                Answer(prediction=-1, radius=0.0, reason="abstained"),
            )
        ),
        "Run": small_run(tmp_path_factory.mktemp("shown") / "run"),
        "Dataset": dds.Dataset(name="six", split="test", x=data.x[:6], y=np.arange(6), classes=tuple("abcdef")),
    }
    assert set(found) == set(KINDS)
    return found


KINDS = {
    "SigmaSearch": dds.SigmaSearch,
    "Certification": dds.Certification,
    "Prediction": dds.Prediction,
    "Answers": Answers,
    "Run": dds.Run,
    "Dataset": dds.Dataset,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_one_line_without_addresses(results: Any, kind: str) -> None:
    text = repr(results[kind])
    assert text.startswith(kind)
    assert len(text) < 250
    assert "\n" not in text and "0x" not in text
    assert str(len(results[kind])) in text


@pytest.mark.parametrize("kind", KINDS)
def test_json_and_back_loses_nothing(results: Any, kind: str) -> None:
    one = results[kind]
    text = json.dumps(one.to_dict(), allow_nan=False)
    again = KINDS[kind].from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert repr(again) == repr(one)
    for name in ("prediction", "radius", "sigma", "counts", "p_lower"):
        if hasattr(one, name):
            a, b = getattr(one, name), getattr(again, name)
            assert a.dtype == b.dtype
            assert (a == b).all()


def test_what_came_back_can_be_used(results: Any) -> None:
    found = dds.Certification.from_dict(results["Certification"].to_dict())
    assert dds.acr(found, [9] * 6) == dds.acr(results["Certification"], [9] * 6)
    data = dds.Dataset.from_dict(results["Dataset"].to_dict())
    assert data.fingerprint() == results["Dataset"].fingerprint()
    assert data.classes == tuple("abcdef")
    run = dds.Run.from_dict(results["Run"].to_dict())
    assert run.rows == results["Run"].rows and run.header == results["Run"].header and run.path == results["Run"].path


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_something_else_is_refused(results: Any, kind: str) -> None:
    found = results[kind].to_dict()
    for wrong in ({**found, "kind": "Nothing"}, {**found, "more": 1}, [found], {"kind": kind}):
        with pytest.raises(InputError, match=kind):
            KINDS[kind].from_dict(wrong)


TAMPERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a vote more": lambda found: found["fresh"][0]["votes"].__setitem__(0, 7),
    "another sigma": lambda found: found["sigma"].__setitem__(0, 5.0),
    "more alpha": lambda found: found["fresh"][0]["looks"][0].__setitem__(2, 0.5),
    "other counts in a look": lambda found: found["fresh"][0]["looks"][0][1].__setitem__(0, N + 1),
    "wins of another class": lambda found: found["fresh"][0].update(anchor=(found["fresh"][0]["anchor"] + 1) % 10),
    "no wins": lambda found: found["fresh"][0].pop("wins"),
    "a row less": lambda found: found["moved"].pop(),
    "a level of nobody": lambda found: found.update(level="everywhere"),
    "a vote of nobody": lambda found: found["rule"].update(vote="loudest"),
    "no number": lambda found: found.update(alpha=float("nan")),
}


@pytest.mark.parametrize("change", TAMPERED)
def test_counts_that_do_not_fit_are_refused(results: Any, change: str) -> None:
    found = json.loads(json.dumps(results["Certification"].to_dict()))
    dds.Certification.from_dict(found)
    TAMPERED[change](found)
    with pytest.raises(InputError):
        dds.Certification.from_dict(found)


def test_rows_that_do_not_fit_their_run_are_refused(results: Any) -> None:
    found = results["Run"].to_dict()
    found["rows"][0]["sigma"] = 0.9
    with pytest.raises(InputError, match=r"sigma is 0\.9"):
        dds.Run.from_dict(found)
    found = results["Run"].to_dict()
    with pytest.raises(InputError, match="order of their ids"):
        dds.Run.from_dict({**found, "rows": found["rows"][::-1]})


@pytest.mark.parametrize("kind", ["SigmaSearch", "Certification", "Prediction", "Answers", "Run"])
def test_an_index_takes_out_inputs(results: Any, kind: str) -> None:
    one = results[kind]
    size = len(one)
    name = "sigma" if kind == "SigmaSearch" else "prediction"
    mask = np.arange(size) % 2 == 1
    assert [len(part) for part in one] == [1] * size
    for index in (1, -1, slice(1, None), mask, [0, 1], np.array([1, 0]), torch.from_numpy(mask), [], slice(0)):
        part = one[index]
        assert type(part) is type(one)
        wanted = getattr(one, name)[index.numpy() if isinstance(index, torch.Tensor) else index]
        assert getattr(part, name).tolist() == np.atleast_1d(wanted).tolist()
        assert repr(part).startswith(kind)
    for beyond in (size, -size - 1, [size], np.ones(size + 1, dtype=bool)):
        with pytest.raises(IndexError):
            one[beyond]
    with pytest.raises(IndexError):
        one[mask, mask]


def test_a_part_keeps_its_evidence(results: Any) -> None:
    whole = results["Certification"]
    part = whole[[4, 2]]
    assert part.radius.tolist() == [whole.radius[4], whole.radius[2]]
    assert part.ids == (whole.ids[4], whole.ids[2]) and part.evidence(1) == whole.evidence(2)
    assert (part.counts == whole.counts[[4, 2]]).all()
    assert json.loads(json.dumps(dds.Certification.from_dict(part.to_dict()).to_dict())) == part.to_dict()


def test_a_part_of_a_run_says_that_it_is_one(results: Any) -> None:
    run = results["Run"]
    assert not run.partial and "partial" not in repr(run)
    part = run[run.radius > np.median(run.radius)]
    assert part.partial and "(partial)" in repr(part)
    assert dds.acr(part) > dds.acr(run)


def test_a_search_is_still_an_array_of_sigmas(results: Any, smoothed: dds.SmoothedClassifier, data: Any) -> None:
    search = results["SigmaSearch"]
    assert np.asarray(search).tolist() == search.sigma.tolist()
    alone = smoothed.certify(data[2:3][0], search[2], n0=20, n=N, seed=0)
    assert alone.counts.tolist() == results["Certification"][2].counts.tolist()


def test_lines_say_what_matters(results: Any) -> None:
    assert "10 classes" not in repr(results["Dataset"]) and "6 classes" in repr(results["Dataset"])
    text = repr(results["Certification"])
    assert "level pointwise" in text and "pairwise vote" in text and "alpha 0.001" in text
    run = results["Run"]
    assert f"ACR {dds.acr(run):.6f}"[:9] in repr(run)
    assert "half on small" in repr(run) and "fixed sigma 0.3" in repr(run) and "level pointwise" in repr(run)


def test_no_acr_where_it_means_nothing(results: Any, tmp_path: Path) -> None:
    run = small_run(tmp_path / "target", n=None, n0=None, radii=[0.1])
    assert run.stops_at_radius and "ACR" not in repr(run)


def test_names_cannot_break_the_line(results: Any) -> None:
    run = results["Run"]
    named = run.header.model.model_copy(update={"name": "a\n\x1b[31m<script>b"})
    bad = dds.Run(path=run.path, header=run.header.model_copy(update={"model": named}), rows=run.rows)
    assert "\n" not in repr(bad) and "\x1b" not in repr(bad)
    assert "<script>" not in bad._repr_html_()


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_for_notebooks(results: Any, kind: str) -> None:
    page = results[kind]._repr_html_()
    assert page.count("<tr>") == len(results[kind]) + 1
    assert "<caption>" + kind in page


def test_a_long_table_is_cut(data: dds.Dataset) -> None:
    page = data._repr_html_()
    assert page.count("<tr>") == 21
    assert "The first 20 of 1,000 rows" in page


def test_tables_round_radii_down(results: Any) -> None:
    answers = Answers(rows=(Answer(prediction=1, radius=0.99999, reason="kept"),))
    assert "<td>0.9999</td>" in answers._repr_html_()


def test_others_results_show_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n1\t1\t0\t0.25\t0\n")
    found = import_file(tmp_path / "a.tsv", tmp_path / "out")
    assert "from a.tsv" in repr(found) and "ACR 0.250" in repr(found)
    assert found[1].radius.tolist() == [0.25] and not found.partial


def frames(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = lambda columns: columns  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)


@pytest.mark.parametrize("kind", KINDS)
def test_data_frames_have_a_row_an_input(results: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames(monkeypatch)
    columns = results[kind].to_pandas()
    assert {len(column) for column in columns.values()} == {len(results[kind])}
    for name in {"prediction", "radius", "sigma", "label"} & set(columns):
        wanted = results[kind].y if kind == "Dataset" else getattr(results[kind], name, None)
        if wanted is not None:
            assert list(columns[name]) == list(wanted)


def test_a_table_of_columns_has_its_numbers_in_a_data_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frames(monkeypatch)
    columns = dds.Dataset(name="a", split="test", x=np.eye(3, dtype=np.float32), y=None).to_pandas()
    assert list(columns) == ["id", "x0", "x1", "x2"] and list(columns["x1"]) == [0.0, 1.0, 0.0]


def test_without_pandas_it_is_said_how_to_get_it(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'ddsmoothing\[pandas\]', or '\.\[pandas\]' in a checkout"):
        results["Run"].to_pandas()


def test_a_data_set_is_iterated_over_once(results: Any) -> None:
    pairs = list(results["Dataset"])
    assert len(pairs) == 6 and pairs[3][1] == 3 and pairs[3][0].shape == (1, 28, 28)


def test_what_is_no_result_has_no_address_either(smoothed: dds.SmoothedClassifier) -> None:
    for one in (smoothed, dds.L2Certificate(), dds.L1Certificate(), dds.SigmaPolicy.fixed(0.25)):
        assert "0x" not in repr(one)
    assert repr(dds.L2Certificate()) == "L2Certificate()"
    memory = dds.CertifiedMemory.create(None, smoothed, dds.SigmaPolicy.fixed(0.25), shape=(1, 28, 28), n0=10, n=100)
    assert repr(memory) == "CertifiedMemory: 0 regions of 0 attempts; L2, level memory"
    memory.close()
    assert repr(memory) == "CertifiedMemory: closed; L2, level memory"
    assert "10 classes" in repr(smoothed) and "pairwise" in repr(smoothed)
