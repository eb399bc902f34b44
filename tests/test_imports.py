from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing.errors import DdsmoothingError, InputError, RunError
from ddsmoothing.runs import Imported, import_file, load_results
from ddsmoothing.runs.imports import parse
from ddsmoothing.verify import verify_run

Cli = Callable[..., object]
SIX = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
SEVEN = "idx\tlabel\tpredict\tradius\tcorrect\tsigma\ttime\n"
LOCUSLAB = SIX + "0\t3\t-1\t0.0\t0\t0:00:13.736080\n20\t7\t7\t0.0734\t1\t0:00:14\n40\t4\t2\t0.405\t0\t0:01:00.5\n"
DDS = SEVEN + "0\t3\t3\t1.25\t1\t0.5\t0:00:01\n1\t7\t7\t0.5\t1\t0.25\t0:00:02\n2\t4\t-1\t0.0\t0\t0.12\t0:00:03\n"
PACKAGE = SIX + "0\t3\t3\t1.2500000000000002\t1\t0:00:01\n100\t7\t7\t5e-1\t1\t0:00:02.5\n"


@pytest.fixture
def tsv(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "theirs.tsv"
        path.write_bytes(text.encode())
        return path

    return write


def test_six_columns_of_locuslab(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    run = import_file(tsv(LOCUSLAB), tmp_path / "in", sigma=0.12)
    assert isinstance(run, Imported)
    assert (run.header.sigma, run.header.sigma_policy, run.level, run.rounded) == (0.12, "fixed", "pointwise", True)
    assert run.ids.tolist() == [0, 20, 40]
    assert run.prediction.tolist() == [-1, 7, 2]
    assert run.radius.tolist() == [0.0, 0.0734, 0.405]
    assert run.correct.tolist() == [False, True, False]
    assert [row.seconds for row in run.rows] == [13.73608, 14.0, 60.5]
    assert [row.reason for row in run.rows] == ["abstained", "certified", "certified"]
    assert dds.acr(run) == pytest.approx(0.0734 / 3)


def test_seven_columns_of_dds(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    run = import_file(tsv(DDS), tmp_path / "in", norm="l1")
    assert (run.header.sigma, run.header.sigma_policy, run.header.norm) == (None, "file", "l1")
    assert run.sigma.tolist() == [0.5, 0.25, 0.12]


def test_six_columns_of_the_dds_package_have_no_sigma(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    run = import_file(tsv(PACKAGE), tmp_path / "in")
    assert run.header.sigma_policy == "unknown"
    assert all(math.isnan(sigma) for sigma in run.sigma)
    assert run.radius.tolist() == [1.2500000000000002, 0.5]


def test_columns_are_found_by_name_in_any_order(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    text = "\ufeffradius\tgap\tidx\tcorrect\tpredict\tlabel\r\n0.5\tx\t3\t1\t2\t2\r\n"
    run = import_file(tsv(text), tmp_path / "in")
    assert (run.ids.tolist(), run.radius.tolist(), run.correct.tolist()) == ([3], [0.5], [True])
    assert math.isnan(run.rows[0].seconds)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \n\t\n", "\r\n\r\n"])
@pytest.mark.parametrize(
    ("change", "other"),
    [
        (("\t-1\t0.0\t0", "\t-1\t-0.0\tFalse"), ("0.0734\t1", "0.0734\tTrue")),
        (("\t-1\t0.0\t0", "\t-1\t-0\tfalse"), ("0.0734\t1", "0.0734\tTRUE")),
        (("\t-1\t0.0\t0", "\t-1\t-0.000\t0.0"), ("0.0734\t1", "0.0734\t1.0")),
    ],
)
def test_common_ways_to_write_the_same(
    change: tuple[str, str], other: tuple[str, str], end: str, tsv: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of pandas, of numpy and of editors: blank lines at the end, a negative zero, words for truth."""
    text = LOCUSLAB.replace(*change).replace(*other)
    assert text != LOCUSLAB
    run = import_file(tsv(text + end), tmp_path / "in")
    assert run.radius.tolist() == [0.0, 0.0734, 0.405]
    assert not np.signbit(run.radius).any()
    assert run.correct.tolist() == [False, True, False]


@pytest.mark.parametrize("format_name", ["locuslab", "dds"])
def test_our_own_tables_come_back(run_l2: dds.Run, tmp_path: Path, cli: Cli, format_name: str) -> None:
    answer = cli("export", run_l2.path, "--format", format_name, tmp_path / "x.tsv")
    assert answer.code == 0 and f"l2, level pointwise, {run_l2.header.vote} vote" in answer.err
    run = import_file(tmp_path / "x.tsv", tmp_path / "in", sigma=0.25 if format_name == "locuslab" else None)
    assert run.ids.tolist() == run_l2.ids.tolist()
    assert run.correct.tolist() == run_l2.correct.tolist()
    assert (run.radius <= run_l2.radius).all()
    assert (run.radius > run_l2.radius - 1e-6).all()
    assert run.header.sigma == 0.25


def test_the_vote_is_what_was_said_of_it(tsv: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    """A table of pairwise certificates is not shown as one of a plurality vote, which they do not protect."""
    assert cli("import", tsv(DDS), "--vote", "pairwise", "--out", tmp_path / "ours").code == 0
    assert cli("import", tsv(DDS), "--out", tmp_path / "theirs").code == 0
    for name, vote in (("ours", "pairwise"), ("theirs", "plurality")):
        assert load_results(tmp_path / name).header.vote == vote
        assert f"level pointwise, {vote} vote" in cli("analyze", tmp_path / name).out
    with pytest.raises(InputError, match="vote 'majority'"):
        import_file(tsv(DDS), tmp_path / "other", vote="majority")


def test_the_folder_keeps_the_file_and_notices_a_change(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    import_file(tsv(LOCUSLAB), tmp_path / "in", sigma=0.12)
    kept = tmp_path / "in" / "imported.tsv"
    assert kept.read_text() == LOCUSLAB
    assert load_results(tmp_path / "in").radius.tolist() == [0.0, 0.0734, 0.405]
    kept.write_text(LOCUSLAB.replace("0.0734", "0.9734"))
    with pytest.raises(RunError, match="not the file that was imported"):
        load_results(tmp_path / "in")


def test_imports_are_never_proof(cli: Cli, tsv: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing that needs evidence takes them: not verify, memory, export, attack, nor a continued run."""
    folder = tmp_path / "in"
    assert cli("import", tsv(LOCUSLAB), "--sigma", 0.12, "--out", folder).code == 0
    with pytest.raises(RunError, match="never proof"):
        dds.load_run(folder)
    with pytest.raises(RunError, match="never proof"):
        verify_run(folder)
    data = ("--data", "fashion-mnist-sample")
    for command in (
        ("verify", folder),
        ("memory", "apply", folder, *data, "--store", tmp_path / "m", "--out", tmp_path / "o"),
        ("export", folder, tmp_path / "x.tsv", "--format", "dds"),
        ("attack", folder, "--model", "fashion-mnist-cnn", *data),
    ):
        answer = cli(*command)
        assert (answer.code, len(answer.err.splitlines())) == (1, 1), answer.err
        assert "never proof" in answer.err
    assert not (tmp_path / "m").exists()


BAD = {
    "empty": ("", "line 1"),
    "a header alone": (SIX, "no results"),
    "no tabs": (SIX.replace("\t", " ") + "0 1 1 0.5 1 0\n", "line 1"),
    "a name twice": ("idx\tidx\tlabel\tpredict\tradius\tcorrect\n0\t0\t1\t1\t1\t1\n", "each once"),
    "a missing name": (LOCUSLAB.replace("radius", "r", 1), "line 1"),
    "an input twice": (LOCUSLAB.replace("\n20\t", "\n0\t"), "line 3: input 0 is there twice"),
    "a torn line": (LOCUSLAB[:-20], "line 4: got 3 cells, expected 6"),
    "an empty line": (LOCUSLAB.replace("\n20", "\n\n20"), "line 3: got 1 cells"),
    "NaN": (LOCUSLAB.replace("0.0734", "nan"), "line 3: radius is 'nan'"),
    "infinity": (LOCUSLAB.replace("0.0734", "inf"), "line 3: radius is 'inf'"),
    "a negative radius": (LOCUSLAB.replace("0.0734", "-0.1"), "line 3: radius"),
    "a huge radius": (LOCUSLAB.replace("0.0734", "1e9"), "line 3: radius"),
    "a word": (LOCUSLAB.replace("0.0734", "much"), "line 3: radius is 'much'"),
    "digits of another script": (LOCUSLAB.replace("0.0734", "٣"), "line 3: radius"),
    "underscores": (LOCUSLAB.replace("0.0734", "0.07_34"), "line 3: radius"),
    "a broken index": (LOCUSLAB.replace("\n20\t", "\n20.5\t"), "line 3: idx is '20.5'"),
    "a negative index": (LOCUSLAB.replace("\n20\t", "\n-20\t"), "line 3: idx"),
    "predict below -1": (LOCUSLAB.replace("7\t7", "7\t-2"), "line 3: predict"),
    "correct against the classes": (LOCUSLAB.replace("0.405\t0", "0.405\t1"), "line 4: correct is '1'"),
    "True against the classes": (LOCUSLAB.replace("0.405\t0", "0.405\tTrue"), "line 4: correct is 'True'"),
    "yes": (LOCUSLAB.replace("0.0734\t1", "0.0734\tyes"), "line 3: correct is 'yes', expected 1 or True"),
    "a negative radius that is tiny": (LOCUSLAB.replace("0.0734", "-0.0000001"), "line 3: radius"),
    "an empty line between others": (LOCUSLAB.replace("\n20", "\n\n\n20") + "\n\n", "line 3: got 1 cells"),
    "blank lines alone": (SIX + "\n\n \n", "no results"),
    "an abstention with a radius": (LOCUSLAB.replace("-1\t0.0", "-1\t0.1"), "line 2: predict is -1"),
    "sigma 0": (DDS.replace("\t0.25\t", "\t0\t"), "line 3: sigma"),
    "a time of 99 minutes": (LOCUSLAB.replace("0:00:14", "0:99:14"), "line 3: time"),
    "no text": ("idx\tlabel\udcff", "line 1: not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_with_its_number(cli: Cli, tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    file = tmp_path / "theirs.tsv"
    file.write_bytes(text.encode(errors="surrogateescape"))
    answer = cli("import", file, "--out", tmp_path / "in")
    assert (answer.code, len(answer.err.splitlines())) == (1, 1)
    assert message in answer.err
    assert not (tmp_path / "in").exists()


def test_options_that_do_not_fit(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a column sigma"):
        import_file(tsv(DDS), tmp_path / "in", sigma=0.5)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma is"):
            import_file(tsv(LOCUSLAB), tmp_path / "in", sigma=sigma)
    with pytest.raises(InputError, match="norm 'l7'"):
        import_file(tsv(LOCUSLAB), tmp_path / "in", norm="l7")
    with pytest.raises(RunError, match="cannot read"):
        import_file(tmp_path / "none", tmp_path / "in")
    with pytest.raises(RunError, match="not empty"):
        import_file(tsv(LOCUSLAB), tmp_path)
    with pytest.raises(RunError, match="cannot write"):
        import_file(tsv(LOCUSLAB), tmp_path / "theirs.tsv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.tsv"]


def test_a_damaged_folder(tsv: Callable[[str], Path], tmp_path: Path) -> None:
    import_file(tsv(LOCUSLAB), tmp_path / "in")
    header = tmp_path / "in" / "imported.json"
    for change in ({"rounded": False}, {"level": "memory"}, {"sigma": -1.0}, {"more": 1}, {"schema_version": 2}):
        whole = header.read_text()
        header.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(RunError, match=r"imported\.json"):
            load_results(tmp_path / "in")
        header.write_text(whole)
    (tmp_path / "in" / "imported.tsv").unlink()
    with pytest.raises(RunError, match=r"imported\.tsv"):
        load_results(tmp_path / "in")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_files_give_rows_or_one_of_our_errors(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([LOCUSLAB, DDS, PACKAGE])).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        drop = data.draw(st.integers(0, 6))
        whole[at : at + drop] = data.draw(
            st.one_of(
                st.binary(max_size=4), st.sampled_from([b"\t", b"\n", b"nan", b"-1", b"1e999", b"\x00", b"9" * 40])
            )
        )
    check_parse(bytes(whole))


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
@example(SIX.encode() + b"\xff\t1\n")
def test_any_bytes_give_rows_or_one_of_our_errors(data: bytes) -> None:
    check_parse(data)


def check_parse(data: bytes) -> None:
    try:
        rows = parse(data, "x")
    except DdsmoothingError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert len({row.id for row in rows}) == len(rows) > 0
    for row in rows:
        assert 0.0 <= row.radius <= 1e6
        assert row.correct == (row.prediction == row.label != -1)
        assert row.prediction >= 0 or row.radius == 0.0


def test_side_by_side_with_ours(cli: Cli, run_l2: dds.Run, tsv: Callable[[str], Path], tmp_path: Path) -> None:
    import_file(tsv(LOCUSLAB), tmp_path / "in", sigma=0.12)
    import_file(tsv(PACKAGE), tmp_path / "unknown")
    answer = cli("analyze", run_l2.path, tmp_path / "in", tmp_path / "unknown")
    assert (answer.code, answer.err) == (0, "")
    assert "fixed sigma 0.12 (rounded radii)" in answer.out
    assert "sigma unknown (pointwise) (rounded radii)" in answer.out
    assert "radii rounded by others, no counts" in answer.out
    assert "envelope" not in answer.out  # other inputs
    one = json.loads(cli("analyze", tmp_path / "in", "--json").out)
    assert (one["rounded"], one["samples_per_input"], one["subset"]) == (True, None, None)
    assert one["certified_accuracy"]["0"] == pytest.approx(1 / 3)
