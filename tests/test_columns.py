"""Tables of numbers in CSV files, and in data frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing.data import as_dataset
from ddsmoothing.errors import DataError, DdsmoothingWarning, InputError
from fuzzing import cases
from reference import Half

TABLE = "age,weight,label,dose\n0.25,-1.5,0,0.75\n1,2e0,1,.5\n"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, label: str = "label", encoding: str = "utf-8") -> str:
        (tmp_path / "table.csv").write_bytes(text.encode(encoding, "surrogateescape"))
        return f"{tmp_path / 'table.csv'}:{label}" if label else str(tmp_path / "table.csv")

    return write


def columns() -> torch.nn.Module:
    return Half([1.0, 0.0, 0.0], 0.525)


def test_a_table(table: Callable[..., str]) -> None:
    data = dds.load_data(table(TABLE), any_range=True)
    assert (data.name, data.split, data.transform, data.classes) == ("table.csv", "test", "none", None)
    assert data.x[:].tolist() == [[0.25, -1.5, 0.75], [1.0, 2.0, 0.5]]
    assert data.y.tolist() == [0, 1]  # type: ignore[union-attr]
    assert data.x.dtype == np.float32
    assert data.fingerprint()["labels_sha256"] is not None


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace("\n", "\r\n"),
        "\ufeff" + TABLE,
        TABLE.replace(",", " , "),
        TABLE + "\n\n",
        TABLE.replace("0.25", '"0.25"'),
        TABLE.replace("-1.5,0,", "-1.5,0.0,").replace("2e0,1,", "2e0,1.0,"),
    ],
)
def test_common_ways_to_write_it(text: str, table: Callable[..., str]) -> None:
    data = dds.load_data(table(text), any_range=True)
    assert (data.x[:].tolist(), data.y.tolist()) == ([[0.25, -1.5, 0.75], [1.0, 2.0, 0.5]], [0, 1])  # type: ignore[union-attr]


def test_without_labels(table: Callable[..., str]) -> None:
    name = table("a,b\n0.5,1\n", "")
    with pytest.raises(DataError, match=r"which column holds the labels, table\.csv:LABEL, or that none does"):
        dds.load_data(name)
    data = dds.load_data(name, labels=False)
    assert (data.x[:].tolist(), data.y) == ([[0.5, 1.0]], None)


def test_words_are_classes_and_their_numbers_are_said(table: Callable[..., str]) -> None:
    name = table("a,kind\n0.5,dog\n0.25,Löwe\n0.75,cat\n0.5,cat\n", "kind")
    with pytest.warns(
        DdsmoothingWarning, match="labels are words, numbered in their order: Löwe is 0, cat is 1, dog is 2"
    ):
        data = dds.load_data(name)
    assert (data.classes, data.y.tolist()) == (("Löwe", "cat", "dog"), [2, 0, 1, 1])  # type: ignore[union-attr]


BAD = {
    "no such column": (TABLE, "lable", "unknown column 'lable'. Did you mean 'label'"),
    "empty": ("", "label", "line 1: got ''"),
    "no names": ("0,1,2\n0,1,2\n", "0", "line 1: .*expected names of columns, each once"),
    "a name twice": ("a,a,label\n0,1,0\n", "label", "line 1"),
    "a column without name": ("a,,label\n0,1,0\n", "label", "line 1"),
    "names alone": ("a,label\n", "label", "no rows below its names"),
    "labels alone": ("label\n0\n", "label", "no columns beside label"),
    "a gap": (TABLE.replace("-1.5", ""), "label", "line 2: weight is empty, expected a number; fill it"),
    "a word": (TABLE.replace(".5\n", "much\n"), "label", "line 3: dose is 'much', expected a number; leave the column"),
    "NaN": (TABLE.replace("2e0", "nan"), "label", "line 3: weight is 'nan'"),
    "infinity": (TABLE.replace("2e0", "inf"), "label", "line 3: weight is 'inf'"),
    "a number that is none": (TABLE.replace("2e0", "1e999"), "label", "NaN or infinity"),
    "underscores": (TABLE.replace("2e0", "1_0"), "label", "line 3: weight is '1_0'"),
    "digits of another script": (TABLE.replace("2e0", "٣"), "label", "line 3: weight"),
    "half a number": (TABLE.replace("2e0", "2e"), "label", "line 3: weight is '2e'"),
    "a torn line": (TABLE[:-4], "label", "line 3: got 3 cells, expected 4"),
    "a line too long": (TABLE + "1,2,0,3,4\n", "label", "line 4: got 5 cells"),
    "a label that is empty": (TABLE.replace(",0,", ",,"), "label", r"a label is empty \(row 1\)"),
    "a negative label": (TABLE.replace(",0,", ",-1,"), "label", "a label is -1, expected classes 0, 1, .."),
    "a quote that is not closed": (TABLE + '"1,2,3\n', "label", "is not a readable CSV file"),
    "another encoding": ("a,label\n\udcff,0\n", "label", "is not a readable CSV file in UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_one_line(name: str, table: Callable[..., str]) -> None:
    text, label, message = BAD[name]
    with pytest.raises(DataError, match=message) as error:
        dds.load_data(table(text, label), any_range=True)
    assert "\n" not in str(error.value)
    assert "table.csv" in str(error.value)


def test_numbers_outside_the_unit_interval_need_their_steps(table: Callable[..., str], tmp_path: Path) -> None:
    """Which is said with the number of steps that the file's own decimals ask for."""
    with pytest.raises(
        DataError, match=r"table\.csv: x lies in \[-1.5, 2\].*They have up to 2 decimals: --levels 100\."
    ):
        dds.load_data(table(TABLE))
    with pytest.raises(DataError, match="no data file at"):
        dds.load_data(f"{tmp_path / 'none.csv'}:label")


def test_a_run_on_a_table(table: Callable[..., str], cli: Callable[..., Any], tmp_path: Path) -> None:
    """On the exact grid of its steps."""
    rows = np.random.default_rng(0).integers(-60, 60, (8, 3)) / 20
    text = "a,b,label,c\n" + "".join(f"{a},{b},{int(a > 0.525)},{c}\n" for a, b, c in rows.tolist())
    command = ("certify", "--model", "test_columns:columns", "--data", table(text), "--sigma", 0.5, "--n", 200)
    done = cli(*command, "--levels", 20, "--no-preflight", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    run = dds.load_run(tmp_path / "run")
    assert {row.noise for row in run.rows} == {"grid"}
    assert [row.label for row in run.rows] == (rows[:, 0] > 0.525).astype(int).tolist()


@cases(150)
@given(data=st.data())
def test_damaged_tables(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Numbers, or an error of ours in one line; never anything else."""
    out = bytearray(TABLE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(out)))
        out[at : at + data.draw(st.integers(0, 6))] = data.draw(
            st.one_of(
                st.binary(max_size=4), st.sampled_from([b",", b"\n", b'"', b"1e999", b"\x00", b"\r", b"-", b"nan"])
            )
        )
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(bytes(out))
    try:
        x, _ = dds.load_data(f"{path}:label", any_range=True)[:]
    except DataError as error:
        assert "\n" not in str(error)
    except DdsmoothingWarning as warning:
        assert "labels are words" in str(warning)
    else:
        assert bool(torch.isfinite(x).all())


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [0.5, 0.25], "b": [0.0, 1.0], "label": [1, 0]})
    data = as_dataset((frame[["a", "b"]], frame["label"]))
    assert (data.x[:].tolist(), data.y.tolist()) == ([[0.5, 0.0], [0.25, 1.0]], [1, 0])  # type: ignore[union-attr]
    with pytest.raises(InputError, match="the data are a table; give"):
        as_dataset(frame)


class Frame:
    """A table in memory, as far as a data set asks."""

    columns = ("a", "b")
    shape = (2, 2)


def test_a_table_in_memory_has_to_say_what_its_labels_are() -> None:
    with pytest.raises(InputError, match=r"give \(frame\[inputs\], frame\[label\]\)"):
        as_dataset(Frame())


MODEL = """
import torch


def build():
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
        model.bias.zero_()
    return model.eval()
"""


def test_units_are_said_everywhere_and_nothing_says_pixels(
    cli: Callable[..., Any], table: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of columns, from the command line to figures, report and card."""
    (tmp_path / "sums_of_columns.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = np.round(np.random.default_rng(0).normal(size=(12, 3)) * 20) / 20
    lines = [",".join(f"{v:.2f}" for v in row) + f",{int(row.sum() > 0)}" for row in values]
    data = table("\n".join(["age,weight,dose,label", *lines]))
    common = "--model", "sums_of_columns:build", "--data", data, "--levels", 20, "--n", 200, "--seed", 0
    units = "--units", "standard deviations"
    fixed, chosen, plain = (tmp_path / name for name in ("fixed", "chosen", "plain"))
    said = [
        cli("certify", *common, *units, "--sigma", 0.5, "--out", fixed),
        cli("certify", *common, *units, "--data-dependent", "--sigma0", 0.5, "--out", chosen),
        cli("certify", "--out", fixed, *common[:4]),  # the units are recalled
        cli("analyze", fixed, chosen, "--per-class"),
        cli("analyze", chosen, "--against", fixed),
        cli("plot", fixed, chosen, "--out", tmp_path / "figures"),
        cli("report", fixed, chosen, "--out", tmp_path / "report.html"),
        cli("card", fixed, "--out", tmp_path / "card.json", "--markdown", tmp_path / "card.md"),
    ]
    assert [answer.code for answer in said] == [0] * len(said), [answer.err for answer in said]
    texts = [answer.out + answer.err for answer in said]
    assert all("standard deviations" in text for text in texts[:5])
    for path in (*(tmp_path / "figures").glob("*.svg"), *(tmp_path / name for name in ("report.html", "card.md"))):
        texts.append(path.read_text().replace("pixelated", ""))  # a style of pictures
        words = all(word in texts[-1] for word in ("standard", "deviations"))  # of an axis maybe in two lines
        assert words or path.name == "confidence.svg", path
    assert not [text for text in texts if "pixel" in text.lower()]
    assert cli("certify", *common, *units, "--sigma", 5, "--out", tmp_path / "large").code == 0
    refused = cli("certify", *common, "--sigma", 5, "--out", plain)
    assert refused.code == 2 and "say by --units" in refused.err and "pixel" not in refused.err
    cli("certify", *common, "--sigma", 0.5, "--out", plain)
    assert dds.load_run(plain).header.units == "those of the input"
    other = cli("certify", *common, *units, "--sigma", 0.5, "--out", plain)
    assert other.code == 1 and "units was those of the input, now standard deviations" in other.err
