"""Where outputs go: regular files are replaced, links are followed, anything else is written into."""

from __future__ import annotations

import ast
import csv
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.errors import printable, table_cell
from ddsmoothing.files import TEMPORARY, file_name, write_durably
from ddsmoothing.models import ModelSpec, save_model
from ddsmoothing.sigma import OptimizeIsotropicSmoothingParameters, save_sigmas
from ddsmoothing.sigma.files import SigmaFile
from ddsmoothing.tables import csv_text

Cli = Callable[..., Answer]
SOURCE = Path(dds.__file__).parent
DEMO = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
SIGMAS = SigmaFile(
    data={"name": "a"}, model="id:b", norm="l2", method="import", options={}, seed=None, sigma={0: 0.5, 1: 0.25}
)


def sigma_file(folder: Path) -> Path:
    save_sigmas(SIGMAS, folder / "given.json")
    return folder / "given.json"


COMMANDS: dict[str, Callable[[dds.Run, Path, Path], tuple[object, ...]]] = {
    "export locuslab": lambda run, out, _: ("export", run.path, "--format", "locuslab", out),
    "export csv": lambda run, out, _: ("export", run.path, "--format", "csv", out),
    "export parquet": lambda run, out, _: ("export", run.path, "--format", "parquet", out),
    "analyze csv": lambda run, out, _: ("analyze", run.path, "--format", "csv", "--out", out),
    "analyze json": lambda run, out, _: ("analyze", run.path, "--format", "json", "--out", out),
    "analyze latex": lambda run, out, _: ("analyze", run.path, "--format", "latex", "--out", out),
    "analyze parquet": lambda run, out, _: ("analyze", run.path, "--format", "parquet", "--out", out),
    "report": lambda run, out, _: ("report", run.path, "--thumbnails", "none", "--out", out),
    "card": lambda run, out, _: ("card", run.path, "--out", out),
    "card in Markdown": lambda run, out, other: ("card", run.path, "--out", other / "c.json", "--markdown", out),
    "optimize": lambda _, out, __: ("optimize", *DEMO, "--max", 1, "--n", 50, "--seed", 0, "--out", out),
    "sigmas export": lambda _, out, other: ("sigmas", "export", sigma_file(other), out),
}
PYTHON: dict[str, Callable[[Path], object]] = {
    "text": lambda out: write_durably(out, "text"),
    "sigmas": lambda out: save_sigmas(SIGMAS, out),
    "a model": lambda out: save_model(SPEC.build(), SPEC, out),
    "thetas": lambda out: OptimizeIsotropicSmoothingParameters(torch.nn.Linear(2, 2), []).save_theta(
        torch.ones(2), str(out)
    ),
}
SPEC = ModelSpec(arch="small-cnn", classes=("a", "b"), mean=(0.5,), std=(0.25,), input_shape=(1, 4, 4))
WRITERS = [*COMMANDS, *PYTHON]


@pytest.fixture
def write(run_l2: dds.Run, cli: Cli, tmp_path: Path) -> Callable[[str, Path], None]:
    def go(name: str, out: Path) -> None:
        if "parquet" in name:
            pytest.importorskip("pyarrow")
        if name in PYTHON:
            PYTHON[name](out)
            return
        answer = cli(*COMMANDS[name](run_l2, out, tmp_path))
        assert answer.code == 0, answer.err

    return go


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_stays_and_its_target_is_replaced(name: str, write: Callable[[str, Path], None], tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    (tmp_path / "between").symlink_to("far/target")
    link.symlink_to("between")
    before = target.stat().st_ino
    write(name, link)
    assert link.is_symlink()
    assert (tmp_path / "between").is_symlink()
    assert target.read_bytes() not in (b"", b"old")
    assert target.stat().st_ino != before  # replaced at once, not written over
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["away", "target"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_pipe_is_written_into(name: str, write: Callable[[str, Path], None], tmp_path: Path) -> None:
    whole, pipe = tmp_path / "whole", tmp_path / "pipe"
    write(name, whole)
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(name, pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)  # else the reader would wait for ever
    reader.join(30)
    assert len(got[0]) > 0
    if name not in ("report", "card", "card in Markdown"):  # these say where they were written, or when
        assert len(got[0]) == len(whole.read_bytes())


@pytest.mark.parametrize("name", WRITERS)
def test_a_device_is_written_into(name: str, write: Callable[[str, Path], None], tmp_path: Path) -> None:
    """Through a link: had it been replaced, the device of this machine would still be there."""
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    write(name, link)
    assert link.is_symlink()
    assert stat.S_ISCHR(link.stat().st_mode)


def test_figures_follow_links(run_l2: dds.Run, cli: Cli, tmp_path: Path) -> None:
    target, figures = tmp_path / "target.svg", tmp_path / "figures"
    figures.mkdir()
    (figures / "certified_accuracy.svg").symlink_to(target)
    assert cli("plot", run_l2.path, "--out", figures).code == 0
    assert (figures / "certified_accuracy.svg").is_symlink()
    assert "<svg" in target.read_text()
    assert not list(figures.glob(f"*{TEMPORARY}"))


def test_standard_output(run_l2: dds.Run, tmp_path: Path) -> None:
    """As a pipe, and as a regular file to which others have written: nothing of it is lost."""

    def run(*command: object) -> str:
        return f"{sys.executable} -c 'from ddsmoothing.cli import script; script()' {' '.join(map(str, command))}"

    def shell(line: str) -> bytes:
        environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True, capture_output=True)
        return done.stdout

    export = ("export", run_l2.path, "--format", "csv")
    expected = shell(f"{run(*export, 'here.csv')} >&2 && cat here.csv")
    assert shell(run(*export, "/dev/stdout")) == expected
    assert shell(f"{run(*export, '/dev/stdout')} | cat") == expected
    assert shell(f"{run(*export, '/dev/fd/3')} 3>&1 >/dev/null") == expected
    assert json.loads(shell(run("card", run_l2.path, "--out", "/dev/stdout")))
    assert shell(f"echo first > log; {run(*export, '/dev/stdout')} >> log; cat log") == b"first\n" + expected
    assert shell(f"{run(*export, '/dev/stdout')} > log; cat log") == expected
    assert shell(f"{run(*export, '>(cat > kept.csv)')}; sleep 1; cat kept.csv").endswith(expected)


def test_permissions_stay_and_what_cannot_be_written_is_said(tmp_path: Path, run_l2: dds.Run, cli: Cli) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"old")
    secret.chmod(0o600)
    write_durably(secret, b"new")
    assert (secret.read_bytes(), stat.S_IMODE(secret.stat().st_mode)) == (b"new", 0o600)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("none/at/all")
    (tmp_path / "full").symlink_to("/dev/full")  # a link, so that the device could not come to harm
    for name in ("loop", "folder", "nowhere", "none/file", "full"):
        answer = cli("export", run_l2.path, "--format", "dds", tmp_path / name)
        assert (answer.code, len(answer.err.splitlines())) == (1, 1), answer.err
        assert "cannot write" in answer.err
    assert (tmp_path / "loop").is_symlink()
    assert (tmp_path / "nowhere").is_symlink()
    assert stat.S_ISCHR((tmp_path / "full").stat().st_mode)


def test_what_is_gone_on_with_has_to_be_a_file(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        answer = cli("predictions", *DEMO, "--sigma", 0.25, "--n", 2, "--out", tmp_path / name)
        assert (answer.code, len(answer.err.splitlines())) == (2, 1), answer.err
        assert "is no regular file" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_link_to_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    write_durably(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_text() == "text"


def test_files_of_others_with_the_old_temporary_name_stay(tmp_path: Path) -> None:
    """The half-written file has a name that nothing else has, and is gone whatever happens."""
    (tmp_path / "target").write_text("keep")
    (tmp_path / "a.tmp").symlink_to("target")
    write_durably(tmp_path / "a", "text")
    assert (tmp_path / "target").read_text() == "keep"
    with pytest.raises(TypeError):
        write_durably(tmp_path / "a", 3)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.tmp", "target"]
    assert (tmp_path / "a").read_text() == "text"


def test_the_longest_name_is_a_name(tmp_path: Path) -> None:
    write_durably(tmp_path / ("ü" * 127), "text")
    assert (tmp_path / ("ü" * 127)).read_text() == "text"


WRITING = {"write_text", "write_bytes", "savefig", "save_file", "to_csv", "to_json", "savez", "savez_compressed"}
INTO_MEMORY = {"whole", "drawn", "text"}  # buffers, which write_durably takes


def test_every_file_is_written_in_one_place() -> None:
    """Calls that write a file by its name stand in files.py alone; elsewhere libraries write into memory."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name == "files.py" or not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            last, arguments = name.rpartition(".")[2], [*node.args, *(k.value for k in node.keywords)]
            target = ast.unparse(node.args[0]).strip("()").partition(" ")[0] if node.args else ""
            if last in WRITING:
                assert target in INTO_MEMORY, f"{path}: {ast.unparse(node)}"
            if name in ("torch.save", "np.save", "parquet.write_table"):
                buffer = ast.unparse(node.args[1]).strip("()").partition(" ")[0]
                assert buffer in INTO_MEMORY, f"{path}: {ast.unparse(node)}"
            if last == "open" and path != SOURCE / "runs" / "lock.py":
                modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert not any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax") for mode in modes), path


# what a spreadsheet opens

FORMULA = "=cmd|'/c calc'!A1"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+2", "@SUM(A1)", " =1", "\u200b=1", "\uff1d1", FORMULA, "-"])
def test_text_that_looks_like_a_formula_is_text(text: str) -> None:
    assert table_cell(text).startswith("'") or table_cell(text).startswith("\\u200b")
    assert table_cell(f"a{text}") == printable(f"a{text}")


def test_other_text_stays() -> None:
    for text in ("cifar-resnet20", "0.5", "a = b", "", " ", "Müller"):
        assert table_cell(text) == text
    assert table_cell("\t=1") == r"\t=1"
    assert table_cell("a\x1b[31m\u202eb") == r"a\x1b[31m\u202eb"


def forged(run: dds.Run, target: Path) -> Path:
    """A run whose header and rows say what a spreadsheet or a terminal would act on."""
    target.mkdir()
    header = json.loads((run.path / "header.json").read_text())
    header["data"]["name"] = header["model"]["name"] = header["device"] = FORMULA
    header["versions"] |= {"torch": "\u202e\x1b]0;x\x07" + FORMULA}
    (target / "header.json").write_text(json.dumps(header))
    rows = [json.loads(line) for line in (run.path / "results.jsonl").read_text().splitlines()]
    (target / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


EXPORTS = [
    "export --format csv",
    "analyze --format csv",
    "analyze --per-class --format csv",
    "analyze --against --format csv",
]


@pytest.mark.parametrize("command", EXPORTS)
def test_no_table_holds_a_formula_or_a_control_character(
    command: str, run_l2: dds.Run, cli: Cli, tmp_path: Path
) -> None:
    """And every number in it is still one, whatever its sign."""
    run, out = forged(run_l2, tmp_path / FORMULA.replace("/", "")), tmp_path / "out.csv"
    name, *options = command.split()
    options = [word for option in options for word in ((option, str(run)) if option == "--against" else (option,))]
    answer = cli(name, run, *options, *((out,) if name == "export" else ("--out", out)))
    assert answer.code == 0, answer.err
    text = out.read_text()
    assert printable(text.replace("\n", "")) == text.replace("\n", "")
    head, *rows = csv.reader(text.splitlines())
    assert rows
    for row in rows:
        for key, cell in zip(head, row, strict=True):
            if cell[:1] in ("=", "+", "-", "@"):
                float(cell)  # or it would be a formula
            if key in ("radius", "sigma", "p_lower", "change", "baseline_radius", "acr") and cell:
                float(cell)


def test_negative_numbers_stay_numbers() -> None:
    text = csv_text([{"change": -0.5, "name": "-0.5", "id": -1, "low": -1e-7, "none": None}])
    assert text.splitlines()[1] == "-0.500000,'-0.5,-1,-0.000001,"
    assert csv_text([{"change": -0.5}], exact=True).splitlines()[1] == "-0.5"


# names that are not UTF-8


def test_file_names_as_text() -> None:
    assert file_name("Müller.npz") == "Müller.npz"
    assert file_name(os.fsdecode(b"M\xfcller.npz")) == r"M\xfcller.npz"
    assert file_name(Path("a\ud800b")) == r"a\ud800b"


def test_text_that_is_no_utf8_is_written_as_escapes(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", "x\udcfcy")
    assert (tmp_path / "a").read_text() == r"x\udcfcy"
