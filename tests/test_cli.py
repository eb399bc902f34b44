from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import ddsmoothing as dds
from ddsmoothing import analysis, tables
from ddsmoothing.cli import app, main

README = Path(__file__).parents[1] / "README.md"

Cli = Callable[..., object]
Capture = pytest.CaptureFixture[str]
BASE = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
QUICK = ("--n0", 10, "--n", 100, "--max", 4, "--seed", 1)
NETS = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3))
def bare():
    module = build()
    return lambda x: module(x)
def nan():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3), Nan())
class Nan(torch.nn.Module):
    def forward(self, x):
        return x * float("nan")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with small data, models and broken files, as the working directory."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 1, 3, 3)).astype(np.uint8)
    np.savez(tmp_path / "good.npz", x=x, y=np.arange(20) % 3)
    np.savez(tmp_path / "unlabelled.npz", x=x)
    np.savez(tmp_path / "large_labels.npz", x=x, y=np.arange(20))
    np.savez(tmp_path / "negative.npz", x=x, y=np.arange(20) - 1)
    np.savez(tmp_path / "wide.npz", x=rng.random((4, 1, 5, 5)), y=np.zeros(4, int))
    np.savez(tmp_path / "pixels.npz", x=x.astype(float), y=np.zeros(20, int))
    (tmp_path / "corrupt.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"weight": 1}))
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"weight": 1}))
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "cli_test_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("cli_test_nets", None)


def small(*args: object) -> tuple[object, ...]:
    """``certify`` on the small data and a random linear model."""
    base = ("certify", "--model", "cli_test_nets:build", "--data", "good.npz", "--n0", 10, "--n", 100, "--out", "run")
    return (*base, "--no-preflight", *args)  # a random model fails it


def test_certify(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddsmoothing.progress.QUIET_SECONDS", math.inf)  # so that no machine is too slow to say nothing
    answer = cli("certify", *BASE, "--sigma", 0.25, *QUICK, "--out", tmp_path / "run")
    assert (answer.code, answer.err) == (0, "")
    run = dds.load_run(tmp_path / "run")
    assert run.ids.tolist() == [0, 1, 2, 3]
    assert (run.header.sigma, run.header.seed, run.header.sampler_options) == (0.25, 1, {"n0": 10, "n": 100})
    assert "fixed sigma 0.25" in answer.out
    assert "4 results in" in answer.out
    assert "(seed 1)" in answer.out


def test_certify_data_dependent(cli: Cli, tmp_path: Path) -> None:
    answer = cli("certify", *BASE, "--data-dependent", *QUICK, "--out", tmp_path / "run", "--sigma-max", 0.8)
    assert answer.code == 0
    run = dds.load_run(tmp_path / "run")
    assert run.header.sigma_policy == "search"
    assert run.header.policy.sigma0 == pytest.approx(0.346)  # the model's training sigma
    assert run.header.policy.sigma_max == 0.8
    assert len(set(run.sigma.tolist())) > 1
    assert "data-dependent sigma (pointwise)" in answer.out


def test_skip_and_max(cli: Cli, tmp_path: Path) -> None:
    options = ("--sigma", 0.25, "--n0", 5, "--n", 50, "--skip", 20, "--max", 3)
    assert cli("certify", *BASE, *options, "--out", tmp_path / "run").code == 0
    run = dds.load_run(tmp_path / "run")
    assert run.ids.tolist() == [0, 20, 40]
    assert run.header.subset.model_dump() == {"skip": 20, "max": 3, "size": 3, "shard": None}


def test_lambda(cli: Cli, tmp_path: Path) -> None:
    options = ("--norm", "l1", "--lambda", 0.5, *QUICK)
    assert cli("certify", *BASE, *options, "--out", tmp_path / "run").code == 0
    row = json.loads((tmp_path / "run" / "results.jsonl").read_text().splitlines()[0])
    assert row["lambda"] == pytest.approx(0.5, rel=1e-15)
    assert row["sigma"] == pytest.approx(0.5 / 3**0.5, rel=1e-15)


def test_no_labels(cli: Cli, place: Path) -> None:
    answer = cli(*small("--data", "unlabelled.npz", "--no-labels", "--sigma", 0.25))
    assert answer.code == 0
    assert "ACR" not in answer.out
    assert dds.load_run(place / "run").rows[0].label is None


def test_a_bare_callable(cli: Cli, place: Path) -> None:
    answer = cli(*small("--model", "cli_test_nets:bare", "--model-id", "mine", "--sigma", 0.25))
    assert answer.code == 0
    assert dds.load_run(place / "run").header.model.model_dump() == {
        "name": "cli_test_nets:bare",
        "sha256": None,
        "model_id": "mine",
    }


def test_a_seed_is_drawn_and_said(cli: Cli, place: Path) -> None:
    answer = cli(*small("--sigma", 0.25, "--max", 1))
    assert f"(seed {dds.load_run(place / 'run').header.seed})" in answer.out


def test_predict(cli: Cli) -> None:
    answer = cli("predict", *BASE, "--sigma", 0.25, "--n", 100, "--max", 3, "--seed", 0)
    header, *lines = answer.out.splitlines()
    assert header.split("\t") == ["id", "label", "prediction"]
    assert [int(line.split("\t")[0]) for line in lines] == [0, 1, 2]
    as_json = cli("predict", *BASE, "--sigma", 0.25, "--n", 100, "--max", 3, "--seed", 0, "--json")
    rows = [json.loads(line) for line in as_json.out.splitlines()]
    assert [[str(v) for v in row.values()] for row in rows] == [line.split("\t") for line in lines]


def test_analyze_json(cli: Cli, run_l2: dds.Run, run_l1: dds.Run) -> None:
    one = json.loads(cli("analyze", run_l2.path, "--json").out)
    assert one["acr"] == pytest.approx(dds.acr(run_l2))
    assert one["certified_accuracy"] == {
        name: pytest.approx(float(dds.certified_accuracy(run_l2, [float(name)])[0]))
        for name in ("0", "0.25", "0.5", "0.75", "1")
    }
    assert one["acr_interval"] == list(analysis.acr_interval(run_l2))
    assert (one["level"], one["norm"], one["inputs"], one["partial"]) == ("pointwise", "l2", 12, False)
    two = json.loads(cli("analyze", run_l2.path, run_l1.path, "--json", "--radii", "0,0.1").out)
    assert [found["norm"] for found in two] == ["l2", "l1"]
    assert set(two[0]["certified_accuracy"]) == {"0", "0.1"}


def test_analyze_table(cli: Cli, run_l2: dds.Run, run_l1: dds.Run) -> None:
    answer = cli("analyze", run_l2.path, "--radii", "0,0.3")
    assert answer.code == 0
    assert "at L2 radius" in answer.out
    assert "fixed sigma 0.25" in answer.out
    assert "at L1 radius" not in answer.out
    assert "at L2 radius" not in cli("analyze", run_l1.path).out
    mixed = cli("analyze", run_l2.path, run_l1.path).out  # one table a norm
    assert mixed.index("at L1 radius") < mixed.index("lambda") < mixed.index("at L2 radius")


def test_the_table_never_rounds_up(cli: Cli, run_l2: dds.Run) -> None:
    acr, held = dds.acr(run_l2), int((run_l2.correct & (run_l2.radius >= 0.3)).sum())
    row = next(line for line in cli("analyze", run_l2.path, "--radii", "0.3").out.splitlines() if "fixed" in line)
    inputs, percent, average = row.split()[-3:]
    assert int(inputs) == 12
    assert 100 * held / 12 - 0.1 < float(percent) <= 100 * held / 12
    assert acr - 0.001 < float(average) <= acr


def partial_copy(run: dds.Run, folder: Path) -> Path:
    folder.mkdir()
    (folder / "header.json").write_bytes((run.path / "header.json").read_bytes())
    lines = (run.path / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:7]))
    return folder


def test_a_partial_run_is_flagged_in_the_table(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    answer = cli("analyze", partial_copy(run_l2, tmp_path / "part"), run_l2.path)
    row = next(line for line in answer.out.splitlines() if "(partial)" in line)
    assert " 7 " in row
    assert "partial: 12 were asked for" in " ".join(answer.out.split())


def test_plot(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    part = partial_copy(run_l2, tmp_path / "part")
    for folder in ("a", "b"):
        assert cli("plot", run_l2.path, part, "--out", tmp_path / folder).code == 0
    for kind in ("svg", "png", "pdf"):
        first, second = (tmp_path / folder / f"certified_accuracy.{kind}" for folder in ("a", "b"))
        assert first.stat().st_size > 3000
        assert first.read_bytes() == second.read_bytes()
    assert ElementTree.parse(tmp_path / "a" / "certified_accuracy.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a" / "certified_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_plot_shows_the_level_and_refuses_mixed_norms(
    cli: Cli, run_l2: dds.Run, run_l1: dds.Run, tmp_path: Path
) -> None:
    assert tables.labels_of([run_l2]) == ["fixed sigma 0.25"]
    assert len(set(tables.labels_of([run_l2, run_l1]))) == 2
    answer = cli("plot", run_l2.path, run_l1.path, "--out", tmp_path)
    assert answer.code == 1
    assert "one norm at a time" in answer.err


def test_export(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    assert cli("export", run_l2.path, "--format", "dds", tmp_path / "x.tsv").code == 0
    assert (tmp_path / "x.tsv").read_text().startswith("idx\tlabel\tpredict\tradius\tcorrect\tsigma\ttime\n0\t")


BAD = {
    "sigma 0": (small("--sigma", 0), 2, "positive finite"),
    "sigma -1": (small("--sigma", -1), 2, "positive finite"),
    "sigma nan": (small("--sigma", "nan"), 2, "positive finite"),
    "sigma inf": (small("--sigma", "inf"), 2, "sigma"),
    "sigma 64": (small("--sigma", 64), 2, "0.251"),
    "sigma 64 of a search": (small("--data-dependent", "--sigma0", 64), 2, "0.251"),
    "sigma 13 forced": (small("--sigma", 13, "--allow-large-sigma"), 2, "at most 12"),
    "sigma text": (small("--sigma", "much"), 2, "not a valid float"),
    "no sigma": (small(), 2, "exactly one of"),
    "two sigmas": (small("--sigma", 0.25, "--data-dependent"), 2, "exactly one of"),
    "lambda with l2": (small("--lambda", 0.5), 2, "--norm l1"),
    "sigma and lambda": (small("--sigma", 0.5, "--lambda", 0.5, "--norm", "l1"), 2, "exactly one of"),
    "start of no search": (small("--sigma", 0.25, "--sigma0", 0.5), 2, "--sigma0 belongs to --data-dependent"),
    "no sigma0": (small("--data-dependent"), 2, "give --sigma0"),
    "range": (small("--data-dependent", "--sigma0", 0.5, "--sigma-max", 0.1), 2, "sigma_max"),
    "n 0": (small("--sigma", 0.25, "--n", 0), 2, "n is 0"),
    "n too small": (small("--sigma", 0.25, "--n", 9), 2, "Use n >= 10"),
    "n0 0": (small("--sigma", 0.25, "--n0", 0), 2, "n0 is 0"),
    "n text": (small("--sigma", 0.25, "--n", "1e3"), 2, "not a valid int"),
    "alpha 2": (small("--sigma", 0.25, "--alpha", 2), 2, "between 0 and 1"),
    "alpha nan": (small("--sigma", 0.25, "--alpha", "nan"), 2, "between 0 and 1"),
    "skip 0": (small("--sigma", 0.25, "--skip", 0), 2, "at least 1"),
    "max 0": (small("--sigma", 0.25, "--max", 0), 2, "at least 1"),
    "seed -1": (small("--sigma", 0.25, "--seed", -1), 2, "seed is -1"),
    "block size 0": (small("--sigma", 0.25, "--block-size", -3), 2, "block_size"),
    "device": (small("--sigma", 0.25, "--device", "tpu"), 2, "no device 'tpu'"),
    "unknown option": (small("--sigmaa", 0.25), 2, "--sigma"),
    "unknown norm": (small("--sigma", 0.25, "--norm", "l7"), 2, "'l7'"),
    "unknown split": (small("--sigma", 0.25, "--split", "val"), 2, "unknown split"),
    "unknown data": (small("--sigma", 0.25, "--data", "fashion-mnist-sampel"), 2, "fashion-mnist-sample"),
    "missing data": (small("--sigma", 0.25, "--data", "none.npz"), 1, "no data file at none.npz"),
    "missing folder": (small("--sigma", 0.25, "--data", "fashion-mnist:none"), 1, "t10k-images"),
    "corrupt npz": (small("--sigma", 0.25, "--data", "corrupt.npz"), 1, "not a readable npz"),
    "no labels": (small("--sigma", 0.25, "--data", "unlabelled.npz"), 1, "--no-labels"),
    "labels too large": (small("--sigma", 0.25, "--data", "large_labels.npz"), 2, "label 19 is out of range"),
    "negative labels": (small("--sigma", 0.25, "--data", "negative.npz"), 1, "a label is -1"),
    "unscaled pixels": (small("--sigma", 0.25, "--data", "pixels.npz"), 1, "divide by 255"),
    "inputs of another shape": (small("--sigma", 0.25, "--data", "wide.npz"), 1, "does not take inputs of shape"),
    "wrong number of classes": (small("--sigma", 0.25, "--num-classes", 10), 1, "num_classes=10"),
    "preflight": (tuple(a for a in small("--sigma", 0.25, "--num-classes", 10) if a != "--no-preflight"), 1, "logits"),
    "NaN logits": (small("--sigma", 0.25, "--model", "cli_test_nets:nan"), 1, "NaN"),
    "unknown model": (small("--sigma", 0.25, "--model", "fashion-mnist-cn"), 2, "Did you mean 'fashion-mnist-cnn'"),
    "a pickle": (small("--sigma", 0.25, "--model", "model.pt"), 1, "can run code"),
    "a disguised pickle": (small("--sigma", 0.25, "--model", "model.safetensors"), 1, "not a readable safetensors"),
    "missing model": (small("--sigma", 0.25, "--model", "none.safetensors"), 1, "no model file at"),
    "missing function": (small("--sigma", 0.25, "--model", "cli_test_nets:none"), 1, "cannot import"),
    "missing package": (small("--sigma", 0.25, "--model", "no.such:thing"), 1, "cannot import"),
    "missing sigma file": (small("--sigmas", "none.json"), 1, "cannot read the sigma file"),
    "not a sigma file": (small("--sigmas", "file"), 1, "not a sigma file"),
    "unwritable out": (small("--sigma", 0.25, "--out", "file/run"), 1, "--out"),
    "full out": (small("--sigma", 0.25, "--out", "full"), 1, "not a run folder"),
    "missing option": (("certify", "--sigma", 0.25), 2, "expected --out"),
    "unknown command": (("certfy",), 2, "certfy"),
    "predict n": (("predict", *BASE, "--sigma", 0.25, "--n", 5), 2, "Use n >= 10"),
    "predict no sigma": (("predict", *BASE), 2, "exactly one of"),
    "analyze nothing": (("analyze",), 2, "Missing argument"),
    "analyze missing": (("analyze", "none"), 1, "not a run folder"),
    "analyze radii": (("analyze", "none", "--radii", "a,b"), 2, "expected numbers"),
    "plot missing": (("plot", "none", "--out", "figures"), 1, "not a run folder"),
    "export missing": (("export", "none", "x.tsv", "--format", "dds"), 1, "not a run folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_an_exit_code(cli: Cli, place: Path, name: str) -> None:
    args, code, message = BAD[name]
    answer = cli(*args)
    assert answer.code == code
    assert message in answer.err
    assert "Traceback" not in answer.err + answer.out
    lines = [line for line in answer.err.splitlines() if line.strip()]
    usage = [line for line in lines if re.match(r"Usage:|Try |Did you mean|\(Possible", line.strip())]
    assert len(lines) - len(usage) == 1
    if code == 2:
        assert not (place / "run").exists()


@pytest.mark.parametrize("file", ["export", "plot"])
def test_unwritable_results(cli: Cli, run_l2: dds.Run, place: Path, file: str) -> None:
    args = {"export": ("x/y.tsv", "--format", "dds"), "plot": ("--out", "file/figures")}[file]
    answer = cli(file, run_l2.path, *args)
    assert answer.code == 1
    assert "cannot write" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_an_unknown_export_format(cli: Cli, run_l2: dds.Run) -> None:
    answer = cli("export", run_l2.path, "x.tsv", "--format", "locuslap")
    assert (answer.code, "'locuslap' is not one of 'locuslab'" in answer.err) == (2, True)


def test_a_large_sigma_can_be_forced(cli: Cli, place: Path) -> None:
    assert cli(*small("--sigma", 5, "--allow-large-sigma")).code == 0


def test_interruption_is_exit_code_75(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddsmoothing.data.load_data", interrupt)
    answer = cli("certify", *BASE, "--sigma", 0.25, "--out", "never")
    assert (answer.code, answer.err.strip()) == (75, "interrupted: nothing was kept; repeat the command.")


@pytest.mark.parametrize("command", [None, *app.commands])
def test_help(cli: Cli, command: str | None) -> None:
    answer = cli(*([command] if command else []), "--help")
    assert answer.code == 0
    assert answer.out.startswith("Usage: ddsmoothing")
    if command in (None, "certify"):
        assert "pixels" in answer.out


def test_version(cli: Cli) -> None:
    assert dds.__version__ in cli("--version").out


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


def test_help_does_not_import_torch() -> None:
    code = "from ddsmoothing.cli import main\nassert main(['certify', '--help']) == 0\nassert main(['--help']) == 0"
    assert not modules_after(code) & {"torch", "numpy", "scipy", "matplotlib", "pydantic"}


def test_import_is_light() -> None:
    heavy = {"matplotlib", "torchvision", "ray", "timm"}
    assert not modules_after("import ddsmoothing") & (heavy | {"torch"})
    main_job = "from ddsmoothing import SmoothedClassifier, load_data, load_model, load_run, search_sigma"
    assert not modules_after(main_job) & heavy


@pytest.mark.parametrize("start", [("-c", "from ddsmoothing.cli import script; script()"), ("-m", "ddsmoothing")])
def test_both_ways_to_start_it(start: tuple[str, str], tmp_path: Path) -> None:
    command = [sys.executable, *start, "analyze", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(("ddsmoothing", "cert"), {"certify"}), (("ddsmoothing", "certify", "--norm", ""), {"l1", "l2"})],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_values(
    shell: str, typed: tuple[str, ...], offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As docs/completion.md says; the shells' own parts are click's."""
    monkeypatch.setenv("_DDSMOOTHING_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(typed))
    monkeypatch.setenv("COMP_CWORD", typed[-1] if shell == "fish" else str(len(typed) - 1))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    words = set(re.split(r"[\s,]+", capsys.readouterr().out))
    assert offered <= words
    assert not words & {"verify", "float"}


def check_demo(out: str, folder: Path, inputs: int) -> None:
    assert "Level pointwise" in out
    assert "The largest radius that n=" in out
    runs = [dds.load_run(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    fixed = ["fixed-0.12", "fixed-0.25", "fixed-0.5", "fixed-1"]
    assert [run.name for run in runs] == ["data-dependent", *fixed, "memory", "stateless"]
    assert [run.level for run in runs] == ["pointwise"] * 5 + ["memory", "stateless"]
    assert runs[-1].header.offsets is not None
    assert not runs[-1].header.offsets.seen  # fitted on training images
    assert all(len(run) == inputs and not run.partial for run in runs)
    assert len({run.header.seed for run in runs}) == 6
    for kind in ("svg", "png"):
        assert (folder / f"certified_accuracy.{kind}").stat().st_size > 3000
    assert f"report: {folder / 'report.html'}" in out
    assert all(run.name in (folder / "report.html").read_text() for run in runs)
    for text in (
        "fixed sigma 0.12",
        "fixed sigma 1",
        "data-dependent sigma (pointwise)",
        "data-dependent sigma (memory)",
        "sigma 1, offsets (stateless)",
        "abstained %",
        "Right by class",
        "ACR",
    ):
        assert text in out


def test_demo_in_small(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("ddsmoothing.cli.demo")
    for name, value in {"SKIP": 100, "N0": 10, "N": 50}.items():
        monkeypatch.setattr(module, name, value)
    answer = cli("demo", "--out", tmp_path / "demo")
    assert answer.code == 0
    check_demo(answer.out, tmp_path / "demo", 10)


@pytest.mark.slow
def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    check_demo(capsys.readouterr().out, tmp_path / "demo", 200)
    acr = {path.name: dds.acr(dds.load_run(path)) for path in (tmp_path / "demo").iterdir() if path.is_dir()}
    assert acr["data-dependent"] > max(value for name, value in acr.items() if name.startswith("fixed"))
    assert acr["memory"] <= acr["data-dependent"]
    assert acr["stateless"] > acr["fixed-1"]
    shown = {"data-dependent (`pointwise`)": "data-dependent", "data-dependent (`memory`)": "memory"}
    shown |= {"1, class offsets (`stateless`)": "stateless", "fixed, 1": "fixed-1", "fixed, 0.25": "fixed-0.25"}
    lines = README.read_text().splitlines()
    table = {label: next(line for line in lines if line.startswith(f"| {label}")) for label in shown}
    for label, name in shown.items():  # another machine may move a sample or two
        assert float(table[label].split(" | ")[-1].split("<br>")[0]) == pytest.approx(acr[name], abs=0.005)
