from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.errors import DataError, ModelError, printable
from ddsmoothing.runs import load_run
from ddsmoothing.sigma.files import import_tensor

SOURCE = Path(dds.__file__).parent
Cli = Callable[..., Answer]
DEMO = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
ESCAPE = "\x1b]0;title\x07"


class NetworkError(Exception):
    """Something tried to reach the network."""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> Any:
        raise NetworkError(args)

    class Refused:
        def __init__(self, *args: object, **options: object) -> None:
            refuse(*args)

    for name in ("create_connection", "create_server", "getaddrinfo", "gethostbyname", "socketpair"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket, "socket", Refused)


def test_the_block_blocks(no_network: None) -> None:
    import urllib.request

    with pytest.raises((NetworkError, OSError)):
        urllib.request.urlopen("http://127.0.0.1:1", timeout=1)
    with pytest.raises(NetworkError):
        socket.socket()


def test_no_command_reaches_the_network(no_network: None, cli: Cli, tmp_path: Path) -> None:
    out, few = tmp_path / "run", ("--skip", 100, "--max", 3)
    commands: list[tuple[object, ...]] = [
        ("certify", *DEMO, "--sigma", 0.25, "--n0", 10, "--n", 100, *few, "--out", out),
        ("analyze", out),
        ("plot", out, "--out", tmp_path / "figures"),
        ("export", out, tmp_path / "run.tsv", "--format", "dds"),
        ("verify", out, "--resample", 1),
        ("attack", out, "--steps", 1, "--samples", 2, "--n", 50, "--max", 1),
        ("doctor", *DEMO),
        ("predict", *DEMO, "--sigma", 0.25, "--n", 50, "--max", 2),
        ("optimize", *DEMO, *few, "--n", 100, "--out", tmp_path / "sigmas.json"),
    ]
    for command in commands:
        answer = cli(*command)
        assert answer.code == 0, (command, answer.err)


def test_the_source_knows_no_network_and_starts_no_program() -> None:
    forbidden = {"socket", "urllib", "http", "requests", "ftplib", "subprocess", "ssl", "webbrowser", "smtplib"}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "os.execv", "torch.hub.load"), path


# nothing that is read is run


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


def test_the_trap_works(marker: Path) -> None:
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()


def test_pickled_tensors_run_nothing(marker: Path, tmp_path: Path, cli: Cli) -> None:
    old = tmp_path / "old.pth"
    for use_zip in (True, False):
        torch.save({"sigma": Evil(marker)}, old, _use_new_zipfile_serialization=use_zip)
        with pytest.raises(DataError, match="not a file of one plain tensor"):
            import_tensor(old, [0], 1)
    old.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(DataError, match="not a file of one plain tensor"):
        import_tensor(old, [0], 1)
    assert cli("sigmas", "import", old, *DEMO, "--max", 1, "--out", tmp_path / "s.json").code == 1
    assert not marker.exists()


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.ckpt", "net.pkl"])
def test_pickled_models_run_nothing(name: str, marker: Path, tmp_path: Path) -> None:
    torch.save(Evil(marker), tmp_path / name)
    with pytest.raises(ModelError):
        dds.load_model(str(tmp_path / name))
    (tmp_path / "net.safetensors").write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(ModelError):
        dds.load_model(str(tmp_path / "net.safetensors"))
    assert not marker.exists()


def test_pickled_arrays_run_nothing(marker: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([Evil(marker)], dtype=object), y=np.array([0]))
    with pytest.raises(DataError, match="not a readable npz file of plain arrays"):
        dds.load_data(str(tmp_path / "data.npz"))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(DataError):
        dds.load_data(str(tmp_path / "raw.npz"))
    assert not marker.exists()


@pytest.fixture
def evil_module(marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module on the path that leaves a mark when it is imported."""
    (tmp_path / "evil_names.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\n\n\ndef build():\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "evil_names:build"
    sys.modules.pop("evil_names", None)


def forged(run: dds.Run, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(run.path, target)
    header = json.loads((target / "header.json").read_text())
    change(header)
    (target / "header.json").write_text(json.dumps(header))
    return target


def test_names_in_a_run_are_not_loaded(
    run_l2: dds.Run, evil_module: str, marker: Path, tmp_path: Path, cli: Cli
) -> None:
    target = forged(run_l2, tmp_path / "run", lambda header: header["model"].update(name=evil_module))
    for command in (("verify", target, "--resample", 1), ("attack", target), ("analyze", target)):
        answer = cli(*command)
        if command[0] != "analyze":
            assert "give --model, since names in files are not loaded" in answer.err
    target = forged(run_l2, tmp_path / "data", lambda header: header["data"].update(name="../../etc/passwd.npz"))
    assert "give --data, since names in files are not loaded" in cli("attack", target).err
    assert not marker.exists()


def test_names_in_a_run_that_is_continued_are_not_loaded(
    run_l2: dds.Run, evil_module: str, marker: Path, tmp_path: Path, cli: Cli
) -> None:
    told = {"model": evil_module, "data": "fashion-mnist-sample", "sigma": 0.25}
    target = forged(run_l2, tmp_path / "run", lambda header: header.update(config=told))
    assert "give it again with --model, since names in files are not loaded" in cli("certify", "--out", target).err
    assert not marker.exists()


# what is shown


def test_control_characters_and_markup_are_shown_as_text(run_l2: dds.Run, tmp_path: Path, cli: Cli) -> None:
    names = [f"[bold red]{ESCAPE}", "[/nothing]", "$\\frac{$"]
    runs = []
    for name in names:
        runs.append(tmp_path / name.replace("/", "_"))
        shutil.copytree(run_l2.path, runs[-1])
    answer = cli("analyze", *runs)
    assert answer.code == 0
    assert "[bold red]" in answer.out.replace("\n", "")
    assert "\x1b" not in answer.out
    assert "\x07" not in answer.out
    assert cli("plot", *runs, "--out", tmp_path / "figures").code == 0
    assert ESCAPE not in (tmp_path / "figures" / "certified_accuracy.svg").read_text()


def test_errors_show_no_control_characters(run_l2: dds.Run, tmp_path: Path, cli: Cli) -> None:
    target = forged(run_l2, tmp_path / "run", lambda header: header["model"].update(name=ESCAPE))
    answers = [cli("attack", target), cli("analyze", tmp_path / ESCAPE)]
    lines = (run_l2.path / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[0]) | {"reason": ESCAPE, "sampler": ESCAPE}
    (target / "results.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    answers.append(cli("verify", target))
    for answer in answers:
        assert answer.code != 0
        text = answer.out + answer.err
        assert "\x1b" not in text
        assert "\x07" not in text
    assert r"\x1b]0;title\x07" in answers[-1].out
    assert printable("a\u202eb\tc\ud800") == r"a\u202eb\tc\ud800"


def test_seeds_come_from_the_operating_system(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs differ, whatever the global generators were told."""
    seeds = set()
    for name in ("a", "b"):
        torch.manual_seed(0)
        np.random.seed(0)
        out = tmp_path / name
        assert cli("certify", *DEMO, "--sigma", 0.25, "--n0", 5, "--n", 50, "--max", 1, "--out", out).code == 0
        seeds.add(load_run(out).header.seed)
    assert len(seeds) == 2
    assert min(seeds) > 2**20
