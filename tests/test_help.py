"""What the command line says of itself: help in groups, completion, and the command that continues a run."""

from __future__ import annotations

import json
import re
import shlex
import signal
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing import data, models
from ddsmoothing.cli import app, main
from ddsmoothing.cli.again import continuing
from ddsmoothing.cli.completing import (
    ARCHITECTURES,
    DATA_SETS,
    KINDS_OF_DATA,
    LIBRARIES,
    MODELS,
    OF_TRAINING,
    PRESETS,
    Names,
    RunFolder,
)
from ddsmoothing.cli.help import LARGE, OTHER, SECTION_OF, SECTIONS
from ddsmoothing.data.load import FOLDERS
from ddsmoothing.models import zoo
from ddsmoothing.training import PRESETS as KNOWN_PRESETS
from ddsmoothing.training import Catrs, TrainConfig
from run_helpers import small_run

Cli = Callable[..., Answer]
DEMO = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", 0.5, "--n", 200, "--skip", 300)


def commands(group: click.Group = app, before: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, (*before, name)) if isinstance(command, click.Group) else {(*before, name): command}
    return found


# help


def test_summaries_are_whole(cli: Cli) -> None:
    for group in ((), ("memory",), ("offsets",), ("pairs",), ("sigmas",)):
        text = cli(*group, "--help").out.split("Commands:")[1]
        assert "..." not in text
    assert "Choose a sigma for each input and write a sigma file" in cli("--help").out


@pytest.mark.parametrize("name", commands(), ids=" ".join)
def test_every_option_is_shown_once(cli: Cli, name: tuple[str, ...]) -> None:
    options = [one for one in commands()[name].params if isinstance(one, click.Option)]
    text = cli(*name, "--help").out
    for one in options:
        assert sum(line.startswith(f"  {one.opts[0]}") for line in text.splitlines()) >= 1, one.opts
    lines = [line for line in text.splitlines() if line.startswith("  -")]
    assert len(lines) == len(options) + 1  # and that of help


@pytest.mark.parametrize(
    "name", [name for name, one in commands().items() if len(one.params) > LARGE + 2], ids=" ".join
)
def test_many_options_stand_in_groups(cli: Cli, name: tuple[str, ...]) -> None:
    text = cli(*name, "--help").out
    heads = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    sections = [head for head in heads if head in SECTIONS]
    assert len(sections) >= 3 and "Options" not in heads
    assert sections == [section for section in SECTIONS if section in sections]
    unplaced = [one.name for one in commands()[name].params if isinstance(one, click.Option)]
    assert sum(one not in SECTION_OF for one in unplaced) <= 5, unplaced
    assert heads.index(OTHER) > heads.index(sections[-1])


def test_no_option_is_in_two_groups() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert len(set(names)) == len(names)
    known = {param.name for command in commands().values() for param in command.params}
    assert set(names) <= known, set(names) - known


def test_the_module_is_the_program() -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "ddsmoothing", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and dds.__version__ in done.stdout


@pytest.mark.parametrize("name", commands(), ids=" ".join)
def test_where_several_gpus_are_taken_it_is_said(name: tuple[str, ...]) -> None:
    options = {one.name: one for one in commands()[name].params if isinstance(one, click.Option)}
    if "device" in options:
        assert ("cuda:0,cuda:1 or all" in str(options["device"].help)) == ("executor" in options)


@pytest.mark.parametrize("name", commands(), ids=" ".join)
def test_every_command_has_an_example_and_every_option_a_word(name: tuple[str, ...]) -> None:
    command = commands()[name]
    assert f"ddsmoothing {' '.join(name)} " in str(command.epilog)
    for one in command.params:
        if isinstance(one, click.Option):
            assert one.help or one.show_default, one.opts


# completion


def completed(*words: str) -> set[tuple[str, str]]:
    found = ShellComplete(app, {}, "ddsmoothing", "_X").get_completions(list(words[:-1]), words[-1])
    return {(one.type, one.value) for one in found}


def test_names_and_files_are_completed() -> None:
    assert completed("certify", "--model", "fashion-mnist-cn") == {
        ("file", "fashion-mnist-cn"),
        ("plain", "fashion-mnist-cnn"),
    }
    assert ("plain", "cifar10:") in completed("certify", "--data", "ci")
    assert completed("certify", "--vote", "pl") == {("plain", "plurality")}
    assert completed("analyze", "--format", "la") == {("plain", "latex")}
    assert ("plain", "--data-dependent") in completed("certify", "--data-")


def test_what_is_completed_is_known() -> None:
    assert set(MODELS) == set(models.SHIPPED)
    assert set(DATA_SETS) == set(data.SHIPPED)
    assert {kind.rstrip(":") for kind in KINDS_OF_DATA} == set(FOLDERS)
    assert set(ARCHITECTURES) == set(zoo.ARCHITECTURES)
    assert {library.rstrip(":") for library in LIBRARIES} == set(zoo.LIBRARIES)
    assert set(PRESETS) == set(KNOWN_PRESETS)


@pytest.mark.parametrize("option", OF_TRAINING)
def test_what_is_completed_of_training_is_what_its_configuration_takes(option: str) -> None:
    of = Catrs if option == "confidence" else TrainConfig
    text = str(typing.get_type_hints(of)[option])
    assert set(OF_TRAINING[option]) == set(re.findall(r"'(\w+)'", text))
    assert completed("train", f"--{option}", "") == {("plain", value) for value in OF_TRAINING[option]}


@pytest.mark.parametrize("name", commands(), ids=" ".join)
def test_models_data_and_runs_are_completed_in_every_command(name: tuple[str, ...]) -> None:
    kinds = {"model": Names, "data": Names, "run": RunFolder, "runs": RunFolder, "against": RunFolder}
    for one in commands()[name].params:
        if one.name in kinds:
            assert isinstance(one.type, kinds[one.name]), one.name
    assert ("plain", "cifar10-macer-dds") in completed("train", "--preset", "cifar10-m")
    assert ("plain", "cifar-resnet20") in completed("train", "--model", "cifar-resnet2")


def test_run_folders_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runs/one", "runs/other", "runs/no-run", "more"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/one/header.json").touch()
    (tmp_path / "runs/other/imported.json").touch()
    monkeypatch.chdir(tmp_path)
    for command in ("analyze", "status", "report", "card", "verify", "plot"):
        assert completed(command, "runs/o") == {("plain", "runs/one"), ("plain", "runs/other")}
        assert completed(command, "ru") == {("dir", "ru")}
    assert completed("analyze", f"{tmp_path}/runs/one") == {("plain", f"{tmp_path}/runs/one")}
    assert completed("analyze", "nowhere/o") == {("dir", "nowhere/o")}


# a folder of runs


@pytest.mark.parametrize("command", ["analyze", "status", "verify", "card", "attack"])
def test_a_folder_of_runs_is_told_from_a_run(cli: Cli, tmp_path: Path, command: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "header.json").write_text("{}")
    out = ("--out", tmp_path / "c.json") if command == "card" else ()
    answer = cli(command, tmp_path / "runs", *out)
    assert answer.code == 1
    assert f"{tmp_path}/runs is no run but holds 2 runs: {tmp_path}/runs/*" in answer.err
    assert "is no run but holds 2 runs" in cli("certify", "--out", tmp_path / "runs").err
    with pytest.raises(dds.DdsmoothingError, match="holds 2 runs"):
        dds.load_run(tmp_path / "runs")
    with pytest.raises(dds.DdsmoothingError, match="is not a run folder"):
        dds.load_run(tmp_path)


# the command that continues


def continued(text: str) -> list[str]:
    """The words of the command in what was printed."""
    line = text.split("continue with:")[1].strip().splitlines()[0]
    words = shlex.split(line)
    assert words[:2] == ["ddsmoothing", "certify"]
    return words[1:]


def test_an_interrupted_command_says_how_to_go_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupted(self: Any, samples: int) -> None:
        calls.append(samples)
        if sum(calls) > 200:  # the first request's 100 are counted, however fast the machine
            raise KeyboardInterrupt

    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr("ddsmoothing.progress.SampleProgress.__call__", interrupted)
        answer = cli("certify", *DEMO, "--block-size", 64, "--model-id", "it's mine", "--out", out)
    assert answer.code == 75
    words = continued(answer.err)
    assert words == continued(cli("status", out).out)
    assert words[-2:] == ["--out", str(out)] and "it's mine" in words
    assert "--seed" not in words and "--alpha" not in words  # the header has them
    assert main(words) == 0
    assert len(dds.load_run(out)) == 4 and not dds.load_run(out).partial


def test_a_part_of_a_run_says_how_to_go_on(cli: Cli, tmp_path: Path) -> None:
    for shard in (1, 2, 3):
        cli("certify", *DEMO, "--seed", 3, "--shard", f"{shard}/3", "--out", tmp_path / str(shard))
    answer = cli("merge", tmp_path / "1", tmp_path / "2", "--partial", "--out", tmp_path / "whole")
    words = continued(answer.out)
    assert "--shard" not in words and "--skip" in words
    assert main(words) == 0
    assert len(dds.load_run(tmp_path / "whole")) == 4


def test_flags_and_foreign_names_are_given_again(cli: Cli, tmp_path: Path, run_l2: dds.Run) -> None:
    answer = cli("certify", *DEMO, "--label-aware", "--trust", "--no-preflight", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    words = json.loads((tmp_path / "run" / "header.json").read_text())["config"]["options"]
    assert {"--label-aware", "--trust", "--no-preflight"} <= set(words) and "True" not in words
    old = run_l2.header.model_copy(update={"config": {"model": "my nets:build", "data": "fashion-mnist-sample"}})
    assert continuing(Path("runs/x"), old) == "ddsmoothing certify --model 'my nets:build' --out runs/x"


@pytest.mark.parametrize("words", [["--model", "a; rm -rf /\n\x1b[31m"], ["$(id)"], "no list", [1]])
def test_a_header_cannot_put_a_command_into_the_line(run_l2: dds.Run, words: Any) -> None:
    header = run_l2.header.model_copy(update={"config": {"options": words, "model": "`id`:build"}})
    line = continuing(Path("runs/x"), header)
    assert "\n" not in line and "\x1b" not in line
    parts = shlex.split(line)
    assert parts[:2] == ["ddsmoothing", "certify"] and parts[-2:] == ["--out", "runs/x"]
    assert len(parts) == 4 + (len(words) if isinstance(words, list) and isinstance(words[0], str) else 2)


def test_a_run_of_a_call_is_continued_by_the_call(cli: Cli, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    assert continuing(run.path, run.header) == "the same call of certify_run"


def test_the_command_is_named_where_a_name_is_missing(cli: Cli, tmp_path: Path, run_l2: dds.Run) -> None:
    assert signal.SIGINT  # the interrupted form is above
    out = tmp_path / "run"
    cli("certify", *DEMO, "--out", out)
    header = json.loads((out / "header.json").read_text())
    header["config"] |= {"model": "my.nets:build", "options": ["--model", "my.nets:build", "--skip", "300"]}
    (out / "header.json").write_text(json.dumps(header))
    answer = cli("certify", "--out", out)
    assert "names in files are not loaded" in answer.err
    assert f"ddsmoothing certify --model my.nets:build --skip 300 --out {out}" in answer.err
