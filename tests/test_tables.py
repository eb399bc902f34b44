from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing import tables
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.runs import import_file
from ddsmoothing.tables import Table
from results_helpers import of_vote, planted, with_header

Cli = Callable[..., object]
CHOSEN = ([1.0, 0.3, 0.0, 0.7], [1, 1, 2, 2], [1, 1, -1, 1])  # radii, labels, predictions


@pytest.fixture
def four(run_l2: dds.Run, tmp_path: Path) -> list[dds.Run]:
    """Two fixed sigmas, a chosen one and a memory over it, on the same four inputs."""
    radii, labels, predictions = CHOSEN
    same = {"labels": labels, "sigmas": [0.5, 0.12, 0.25, 1.0]}
    notes = [("kept", 1.0), ("cut", 0.3), ("abstained", 0.0), ("answered", 0.7)]
    return [
        planted(run_l2, tmp_path / "small", [0.4, 0.4, 0.1, 0.0], labels=labels, predictions=[1, 1, 2, -1], sigma=0.12),
        planted(run_l2, tmp_path / "large", [0.9, 0.0, 0.0, 0.9], labels=labels, predictions=[1, -1, -1, 2], sigma=0.5),
        planted(run_l2, tmp_path / "chosen", radii, predictions=predictions, **same),
        planted(
            run_l2,
            tmp_path / "kept",
            [1.0, 0.2, 0.0, 0.7],
            level="memory",
            predictions=predictions,
            notes=notes,
            **same,
        ),
    ]


def test_what_runs_were_made_on_is_said_once(run_l2: dds.Run) -> None:
    divided = with_header(run_l2, sampler="divided", sampler_options={"n0": 10, "n": 90, "scales": 2})
    same = with_header(run_l2)
    (table,) = tables.accuracy_tables([run_l2, same, divided], [0.0], tables.Shown(names=("a", "b", "c")))
    first, second, *_ = table.notes
    assert first.startswith("a; b: ") and second.startswith("c: ")
    assert "divided sampler, n0=10, n=90, sigmas=2, alpha" in second  # the glossary's word
    (alone,) = tables.accuracy_tables([run_l2, same], [0.0], tables.Shown(names=("a", "b")))
    assert alone.notes[0] == first.removeprefix("a; b: ")


def column(table: Table, name: str) -> list[str]:
    return [row[table.columns.index(name)].split("\n")[0] for row in table.rows]


def test_levels_and_norms_never_share_a_table(four: list[dds.Run], run_l1: dds.Run) -> None:
    found = tables.accuracy_tables([*four, run_l1])
    assert [re.findall(r"L[12]|level \w+", table.title) for table in found] == [
        ["L1", "level pointwise"],
        ["L2", "level pointwise"],
        ["L2", "level memory"],
    ]
    assert column(found[2], "sigma (level)") == ["data-dependent sigma (memory)"]
    assert len(tables.noise_tables([*four, run_l1])) == 3


def test_certified_accuracy_acr_and_the_envelope(four: list[dds.Run]) -> None:
    table = tables.accuracy_tables(four, [0.0, 0.35, 0.8])[0]
    assert column(table, "sigma (level)")[-1] == "envelope of the fixed sigmas"
    assert column(table, "0") == ["75.0", "50.0", "50.0", "75.0"]
    assert column(table, "0.35") == ["50.0", "50.0", "25.0", "50.0"]
    assert column(table, "0.8") == ["0.0", "50.0", "25.0", "50.0"]
    assert column(table, "ACR") == ["0.225", "0.450", "0.325", "-"]
    assert any("no single classifier attains it" in note for note in table.notes)


def test_no_envelope_over_other_inputs_levels_or_one_sigma(
    four: list[dds.Run], run_l2: dds.Run, tmp_path: Path
) -> None:
    small, large, chosen, _ = four
    other = planted(run_l2, tmp_path / "other", [0.4, 0.4], sigma=1.0)
    relabelled = planted(run_l2, tmp_path / "relabelled", [0.4] * 4, labels=[0] * 4, sigma=1.0)
    remembered = planted(run_l2, tmp_path / "fixed-memory", [0.4] * 4, level="memory", sigma=1.0)
    data = run_l2.header.data.model_copy(update={"sha256": "0" * 64})
    elsewhere = planted(run_l2, tmp_path / "elsewhere", [0.4] * 4, labels=CHOSEN[1], sigma=1.0, data=data)
    assert tables.fixed_group([small, large, chosen]) == [small, large]
    for fourth in (other, relabelled, elsewhere):
        assert tables.fixed_group([small, large, fourth]) == []
    assert tables.fixed_group([small, remembered]) == tables.fixed_group([small, chosen]) == []
    assert tables.labels_of([remembered]) == ["fixed sigma 1 (memory)"]


def test_runs_of_two_votes_say_so_everywhere(four: list[dds.Run], run_l2: dds.Run, tmp_path: Path) -> None:
    small, large, chosen = (of_vote(run, "plurality") for run in four[:3])
    (alone,) = tables.accuracy_tables([small, large])
    assert "plurality vote" in alone.title
    assert "plurality vote" in alone.notes[0]
    assert column(alone, "sigma (level)") == ["fixed sigma 0.12", "fixed sigma 0.5", "envelope of the fixed sigmas"]
    pairwise = of_vote(large, "pairwise")
    (both,) = tables.accuracy_tables([small, pairwise])
    assert column(both, "sigma (level)") == ["fixed sigma 0.12, plurality vote", "fixed sigma 0.5, pairwise vote"]
    assert both.title.endswith("plurality and pairwise votes")
    assert any("two kinds" in note for note in both.notes)
    named = tables.accuracy_tables([small, pairwise], shown=tables.Shown(names=("a", "b")))[0]
    assert [note[:2] for note in named.notes[:2]] == ["a:", "b:"]
    assert "pairwise vote" in named.notes[1]
    assert tables.fixed_group([small, pairwise]) == []
    assert [record["vote"] for record in tables.summary_records([small, pairwise])] == ["plurality", "pairwise"]
    assert "pairwise" in tables.noise_tables([pairwise])[0].title
    assert "pairwise vote" in tables.pair_tables([chosen], pairwise)[0].notes[1]
    assert [record["vote"] for record in tables.row_records(pairwise)] == ["pairwise"] * 4
    (tmp_path / "x.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n")
    assert tables.summary(import_file(tmp_path / "x.tsv", tmp_path / "in"))["vote"] == "plurality"


def test_units_are_those_of_the_header_and_never_pixels_for_columns(four: list[dds.Run], cli: Cli) -> None:
    small, large, chosen, _ = four
    assert "pixels in [0, 1]" in tables.accuracy_tables([small])[0].notes[-1]
    columns = with_header(small, units="those of the input")
    said = with_header(large, units="standard deviations")
    for run, units in ((columns, "units of the input"), (said, "standard deviations")):
        shown = [*tables.accuracy_tables([run]), *tables.noise_tables([run]), *tables.class_tables([run])]
        shown += tables.pair_tables([run], run)
        for table in shown:
            text = " ".join([table.title, *table.notes])
            assert "pixel" not in text
        assert units in tables.accuracy_tables([run])[0].notes[-1]
        assert tables.summary(run)["units"] == units
    assert len(tables.accuracy_tables([small, columns, said])) == 3  # radii of different units share no table
    assert [len(same) for same in tables.alike([small, columns, said, small])] == [2, 1, 1]
    with pytest.raises(RunError, match="units"):
        tables.paired(chosen, columns)


def test_certificates_of_a_wrong_class_stand_beside_abstentions(run_l2: dds.Run, tmp_path: Path) -> None:
    """Wrong with a radius above 0; abstentions and answers without a radius are not."""
    run = planted(
        run_l2,
        tmp_path / "run",
        [0.5, 0.2, 0.0, 0.0, 0.1, 0.3],
        labels=[1, 1, 1, 1, 2, 2],
        predictions=[1, 2, -1, 2, 2, 1],
    )
    (table,) = tables.noise_tables([run])
    assert (column(table, "abstained %"), column(table, "wrong %")) == (["16.7"], ["33.4"])
    assert tables.summary(run)["certified_wrong"] == pytest.approx(2 / 6)
    assert [record["certified_wrong"] for record in tables.class_records(run)] == [0.25, 0.5]
    bare = tuple(row.model_copy(update={"label": None, "correct": None}) for row in run.rows)
    (table,) = tables.noise_tables([dds.Run(path=run.path, header=run.header, rows=bare)])
    assert column(table, "wrong %") == ["-"]


def test_classes_have_names_where_the_run_knows_them(four: list[dds.Run]) -> None:
    names = [f"c{k}" for k in range(10)]
    run = with_header(four[0], config={"classes": names})
    assert column(tables.class_tables([run])[0], "class") == ["1 c1", "2 c2"]
    assert [record["class_name"] for record in tables.class_records(run)] == ["c1", "c2"]
    short = with_header(four[0], config={"classes": ["a", "b"]})  # not one for each class
    assert column(tables.class_tables([short])[0], "class") == ["1", "2"]


def test_columns_intervals_names_and_bold(four: list[dds.Run]) -> None:
    shown = tables.Shown(names=("a", "b", "c", "d"), only="accuracy", intervals=False, bold=True)
    pointwise, memory = tables.accuracy_tables(four, [0.0, 0.35], shown)
    assert pointwise.columns == ("run", "inputs", "0", "0.35")
    assert pointwise.rows[1] == ("b", "4", "50.0", "50.0")
    assert pointwise.bold == {(0, 2), (0, 3), (1, 3)}  # equal as they are shown; the envelope does not compete
    assert (memory.rows[0][0], memory.bold) == ("d", frozenset())  # one alone is not the best of several
    (acr, _) = tables.accuracy_tables(four, shown=tables.Shown(only="acr"))
    assert acr.columns == ("sigma (level)", "inputs", "ACR")
    assert len(acr.rows) == 3
    with pytest.raises(InputError, match="3 names for 4 runs"):
        tables.accuracy_tables(four, shown=tables.Shown(names=("a", "b", "c")))


def test_headings_name_model_data_and_inputs(run_l2: dds.Run, tmp_path: Path) -> None:
    assert tables.heading([run_l2]) == "fashion-mnist-cnn on fashion-mnist-sample, 12 of 1,000 inputs"
    model = run_l2.header.model.model_copy(update={"name": "other", "sha256": "1" * 64})
    other = planted(run_l2, tmp_path / "other", [0.4, 0.4], sigma=0.5, model=model)
    assert tables.heading([run_l2, other]) == "2 models on fashion-mnist-sample, 2 of 1,000 / 12 of 1,000 inputs"
    assert tables.labels_of([run_l2, other])[1] == "fixed sigma 0.5, other"
    assert "2 models" in " ".join(tables.accuracy_tables([run_l2, other])[0].notes)
    (tmp_path / "x.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n")
    assert tables.heading([import_file(tmp_path / "x.tsv", tmp_path / "in")]) == "Imported results, 1 inputs"


def test_percents_round_down_in_whole_numbers() -> None:
    assert tables.percent(29, 100) == "29.0"  # 29 / 100 * 100 is 28.999999999999996
    assert tables.percent(2, 3) == "66.6"
    assert tables.percent(9999, 10_000) == "99.9"


@pytest.mark.parametrize(
    ("value", "down", "up"),
    [
        (0.030000000000000002, "0.03", "0.031"),
        (Decimal("0.001") * 30, "0.03", "0.03"),
        (0.0307, "0.03", "0.031"),
        (1234.0, "1200", "1300"),
        (99.9, "99", "100"),
        (0.0, "0", "0"),
        (1.0, "1", "1"),
        (-0.0307, "-0.031", "-0.03"),
        (1.23e-7, "1.2e-7", "1.3e-7"),
    ],
)
def test_two_significant_digits(value: float | Decimal, down: str, up: str) -> None:
    assert (tables.significant(value), tables.significant(value, up=True)) == (down, up)


@given(st.floats(1e-12, 1e12), st.integers(1, 6))
def test_significant_digits_err_to_their_side(value: float, digits: int) -> None:
    low, high = (Decimal(tables.significant(value, digits, up=up)) for up in (False, True))
    assert low <= Decimal(repr(value)) <= high
    assert high - low <= low * Decimal(10) ** (1 - digits)


@given(st.floats(0.0, 1e6), st.integers(0, 6))
def test_ceil_text_is_the_smallest_decimal_above(value: float, digits: int) -> None:
    shown = float(tables.ceil_text(value, digits))
    assert shown >= value * (1 - 1e-15)
    assert shown - value <= 10.0**-digits * (1 + 1e-6) + 1e-9
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", tables.ceil_text(value, digits))


@given(st.integers(1, 1000), st.data())
def test_a_share_is_rounded_as_whole_numbers_would_be(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    down, up = (tables.share_text(hits / total, 3, up=up) for up in (False, True))
    assert down == f"{1000 * hits // total / 1000:.3f}"
    assert up == f"{-(-1000 * hits // total) / 1000:.3f}"


def test_printed_numbers_are_on_the_safe_side(run_l2: dds.Run) -> None:
    from ddsmoothing import analysis

    (table,) = tables.accuracy_tables([run_l2], [0.0, 0.3])
    for cell, share, (low, high) in zip(
        table.rows[0][2:4],
        analysis.certified_accuracy(run_l2, [0.0, 0.3]),
        analysis.certified_accuracy_interval(run_l2, [0.0, 0.3]),
        strict=True,
    ):
        value, below, above = (float(part) for part in re.split("[\n-]", cell))
        assert value <= 100 * share < value + 0.1
        assert below <= 100 * low
        assert above >= 100 * high
    mean, below, above = (float(part) for part in re.split("[\n-]", table.rows[0][4]))
    low, high = analysis.acr_interval(run_l2)
    assert mean <= dds.acr(run_l2)
    assert below <= low < high <= above


def test_subsets_and_partial_runs_are_marked_in_every_form(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    part = planted(run_l2, tmp_path / "part", [0.5, 0.4], labels=[1, 2], size=12)
    made_on = "2 of 1,000 inputs (one in 50, at most 12), partial: 12 were asked for"
    for form in ("text", "md", "latex", "csv", "json"):
        for mode in ([], ["--per-class"], ["--against", part.path]):
            out = cli("analyze", part.path, "--format", form, *mode).out
            assert made_on in out, (form, mode)
    header = part.header.model_copy(update={"subset": part.header.subset.model_copy(update={"shard": (2, 3)})})
    assert "shard 2 of 3" in tables.provenance(dds.Run(path=part.path, header=header, rows=part.rows))


def test_a_run_that_stopped_at_a_radius_has_no_acr(run_l2: dds.Run, four: list[dds.Run], tmp_path: Path) -> None:
    stopped = planted(run_l2, tmp_path / "stopped", [0.5] * 4, labels=CHOSEN[1], sampler="target")
    assert tables.accuracy_tables([stopped])[0].rows[0][-1] == "-"
    assert column(tables.class_tables([stopped])[0], "ACR") == ["-", "-"]
    (record,) = tables.summary_records([stopped])
    assert (record["acr"], record["acr_low"]) == (None, None)
    with pytest.raises(RunError, match="wanted radius"):
        tables.paired(stopped, four[0])


def test_classes_add_up_to_the_whole(four: list[dds.Run]) -> None:
    for run in four:
        records = tables.class_records(run, [0.0, 0.5])
        assert [record["class"] for record in records] == [1, 2]
        total = sum(record["inputs"] for record in records)
        assert sum(r["inputs"] * r["acr"] for r in records) / total == pytest.approx(dds.acr(run), abs=1e-15)
        hits = sum(record["inputs"] * record["certified_accuracy_0.5"] for record in records)
        assert hits / total == pytest.approx(dds.certified_accuracy(run, [0.5])[0])
    (table,) = tables.class_tables(four[:1], [0.0])
    assert table.rows == (
        ("1 Trouser", "2", "100.0", "0.400", "0.0", "0.0"),
        ("2 Pullover", "2", "50.0", "0.050", "50.0", "0.0"),
    )


def test_who_lost_radius(four: list[dds.Run]) -> None:
    """Wrong classes and abstentions count as radius 0 on both sides."""
    small, large, chosen, _ = four
    found = tables.pair_summary(chosen, large)
    assert (found["won"], found["lost"], found["equal"]) == (2, 1, 1)
    assert [one["id"] for one in found["worst"]] == [150]
    assert found["worst"][0]["change"] == -0.9
    assert found["mean_change"] == pytest.approx(np.mean([0.1, 0.3, 0.0, -0.9]))
    assert [record["id"] for record in tables.pair_records(chosen, small)] == [0, 50, 100, 150]
    assert tables.pair_tables([chosen, small], large)[0].rows[0][2:] == ("2", "1", "1", "-0.125")


def test_the_worst_losers_come_first_and_are_floored(run_l2: dds.Run, tmp_path: Path) -> None:
    base = planted(run_l2, tmp_path / "base", [1.0] * 12)
    run = planted(run_l2, tmp_path / "run", [0.1234567 + i / 20 for i in range(12)])
    worst = tables.pair_summary(run, base)["worst"]
    assert [one["id"] for one in worst] == [50 * i for i in range(10)]
    bare, named = (with_header(run, config={"classes": names}) for names in ([], [f"c{k}" for k in range(10)]))
    assert tables.pair_tables([bare], base)[1].rows[0] == ("0", "1", "0.123", "1.000", "-0.877")
    assert tables.pair_tables([named], base)[1].rows[0][:2] == ("0", "1 c1")


def test_runs_that_may_not_be_compared(four: list[dds.Run], run_l1: dds.Run, run_l2: dds.Run, tmp_path: Path) -> None:
    small, _, chosen, kept = four
    data = run_l2.header.data.model_copy(update={"sha256": "0" * 64})
    elsewhere = planted(run_l2, tmp_path / "elsewhere", [0.4] * 4, labels=CHOSEN[1], data=data)
    relabelled = planted(run_l2, tmp_path / "relabelled", [0.4] * 4, labels=[0] * 4)
    for other, message in ((kept, "level"), (run_l1, "norm"), (elsewhere, "data set"), (relabelled, "data set")):
        with pytest.raises(RunError, match=message):
            tables.paired(other, small)
    half = planted(run_l2, tmp_path / "half", [0.1, 0.2], labels=[1, 1])
    assert tables.paired(chosen, half).ids.tolist() == [0, 50]  # those both have


def test_markdown_escapes_and_lines_up(four: list[dds.Run]) -> None:
    table = Table(title="a|b <i>", columns=("x", "y"), rows=(("p_q | *r*", "1.0\n0-2"),), notes=("`n`",))
    text = tables.markdown([table])
    assert r"**a\|b \<i\>**" in text
    assert r"| p\_q \| \*r\* | 1.0<br>0-2 |" in text
    assert "| --- | ---: |" in text
    lines = [line for line in tables.markdown(tables.accuracy_tables(four)).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}


def test_latex_is_booktabs_and_escaped() -> None:
    table = Table(title="50 % of a_b", columns=("x & y", "n"), rows=(("{\\~^$#}", "-0.5"), ("q", "1.0\n0-2")))
    text = tables.latex([table])
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert r"\caption{50 \% of a\_b}" in text
    assert r"x \& y & n \\" in text
    assert r"\{\textbackslash{}\textasciitilde{}\textasciicircum{}\$\#\} & $-0.5$ \\" in text
    assert r"q & 1.0 {\scriptsize 0--2} \\" in text


def test_latex_as_papers_want_it(cli: Cli, four: list[dds.Run]) -> None:
    runs = [run.path for run in four[:3]]
    asked = ("--format", "latex", "--only", "accuracy", "--no-intervals", "--bold", "--radii", "0,0.35")
    text = cli("analyze", *runs, *asked, "--names", "A_1,sigma,C", "--label", "tab:a", "--caption", "At 5 % of L2").out
    assert "scriptsize" not in text
    assert r"\caption{At 5 \% of $\ell_2$}" in text
    assert r"\label{tab:a}" in text
    assert r"A\_1 & 4 & \textbf{75.0} & \textbf{50.0} \\" in text
    assert r"$\sigma$ & 4 & 50.0 & \textbf{50.0} \\" in text
    assert "& ACR" not in text
    assert r"fixed $\sigma$ 0.12" in cli("analyze", runs[0], "--format", "latex").out
    odd = Table(title="x", columns=("sigma-file", "my_sigma.tsv", "sigma."), rows=())
    assert r"sigma-file & my\_sigma.tsv & $\sigma$. \\" in tables.latex([odd])
    bold = tables.markdown([Table(title="x", columns=("a", "b"), rows=(("c", "1\n0-2"),), bold=frozenset({(0, 1)}))])
    assert "| c | **1**<br>0-2 |" in bold
    for options, message in (
        (("--label", "a"), "LaTeX table"),
        (("--format", "latex", "--label", "a"), "are of one table, and these are 2"),
        (("--format", "latex", "--only", "acr", "--label", "a b"), "expected letters"),
        (("--per-class", "--bold"), "table of accuracies"),
        (("--json", "--only", "acr"), "table of accuracies"),
        (("--names", "a"), "1 names for 2 runs"),
    ):
        answer = cli("analyze", *runs[:2], *options)
        assert (answer.code, message in answer.err) == (2, True), answer.err


def test_csv_reads_back_and_rounds_down(cli: Cli, four: list[dds.Run]) -> None:
    out = cli("analyze", *(run.path for run in four), "--format", "csv", "--radii", "0,0.35").out
    rows = list(csv.DictReader(StringIO(out)))
    assert [row["label"] for row in rows][-1] == "envelope of the fixed sigmas"
    assert [row["level"] for row in rows] == ["pointwise"] * 3 + ["memory", "pointwise"]
    for row, run in zip(rows, four, strict=False):
        assert dds.acr(run) - 1e-6 <= float(row["acr"]) <= dds.acr(run)
        assert float(row["certified_accuracy_0.35_low"]) <= float(row["certified_accuracy_0.35"])
        assert float(row["certified_accuracy_0.35_high"]) >= float(row["certified_accuracy_0.35"])
        assert float(row["sigma_median"]) <= float(np.median(run.sigma))
    assert rows[-1]["acr"] == ""


def test_parquet_reads_back(cli: Cli, four: list[dds.Run], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = [run.path for run in four]
    assert cli("analyze", *paths, "--format", "parquet", "--out", tmp_path / "x.parquet").code == 0
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["acr"] for row in rows[:-1]] == [dds.acr(run) for run in four]
    assert cli("export", paths[2], tmp_path / "rows.parquet", "--format", "parquet").code == 0
    found = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["radius"] for row in found] == CHOSEN[0]
    assert found[0]["wins"] == list(four[2].rows[0].fresh.wins)
    answer = cli("export", paths[2], tmp_path / "none" / "x", "--format", "parquet")
    assert (answer.code, len(answer.err.splitlines())) == (1, 1)


def test_without_pyarrow_the_message_names_the_extra(
    run_l2: dds.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"ddsmoothing\[parquet\]"):
        tables.write_parquet([{"a": 1}], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_exported_rows_are_exact(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    assert cli("export", run_l2.path, tmp_path / "rows.csv", "--format", "csv").code == 0
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [float(row["radius"]) for row in rows] == run_l2.radius.tolist()
    assert [tuple(map(int, row["wins"].split())) for row in rows] == [row.fresh.wins for row in run_l2.rows]


@pytest.mark.parametrize("form", ["md", "latex", "csv", "json"])
def test_out_writes_what_would_be_printed(cli: Cli, four: list[dds.Run], tmp_path: Path, form: str) -> None:
    args = ("analyze", four[2].path, "--against", four[1].path, "--format", form)
    printed = cli(*args).out
    assert cli(*args, "--out", tmp_path / "x").out == f"{tmp_path / 'x'}\n"
    assert (tmp_path / "x").read_text() == printed
    if form == "json":
        assert json.loads(printed)["lost"] == 1


def test_options_that_do_not_go_together(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    for args, message in (
        (("--per-class", "--against", run_l2.path), "one at a time"),
        (("--format", "parquet"), "needs --out"),
        (("--out", tmp_path / "x"), "cannot go to --out"),
        (("--radii", "0,nan"), "--radii"),
        (("--radii", "0.5,0.5"), "each once"),
        (("--radii=-1",), "from 0 on"),
    ):
        answer = cli("analyze", run_l2.path, *args)
        assert (answer.code, message in answer.err) == (2, True), answer.err
    assert not (tmp_path / "x").exists()


def test_text_of_classes_and_losers(cli: Cli, four: list[dds.Run]) -> None:
    out = cli("analyze", four[2].path, "--per-class").out
    assert "of each class" in out
    out = " ".join(cli("analyze", four[2].path, "--against", four[1].path).out.split())
    assert "against fixed sigma 0.5, input by input" in out
    assert "150 2 Pullover 0.000 0.900 -0.901" in out


def test_runs_of_different_data_sets_are_named_by_them(run_l2: dds.Run, tmp_path: Path) -> None:
    first = planted(run_l2, tmp_path / "first", [0.4, 0.4], sigma=1.0)
    assert tables.labels_of([first, first])[0] == "fixed sigma 1, first"
    for name, mark in ((run_l2.header.data.name, f"{run_l2.header.data.name} 00000000"), ("elsewhere", "elsewhere")):
        data = run_l2.header.data.model_copy(update={"name": name, "sha256": "0" * 64})
        other = planted(run_l2, tmp_path / name, [0.4, 0.4], sigma=0.5, data=data)
        assert tables.labels_of([first, other])[1] == f"fixed sigma 0.5, {mark}"
        (table,) = tables.accuracy_tables([first, other])
        assert run_l2.header.data.name in table.rows[0][0]
