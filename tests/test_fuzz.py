"""Every file that the command line reads, damaged in thousands of ways: an answer or one line of error.

That nothing hangs is seen by the time limit that every test has.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.cli import main
from ddsmoothing.models import ARCHITECTURES, ModelSpec, save_model
from ddsmoothing.sigma import SigmaPolicy
from fuzzing import cases, damaged
from reference import Half

CASES = {
    **{"header": 320, "results": 380, "sigmas": 280, "npz": 320, "idx": 250},
    **{"safetensors": 320, "tensor": 130, "memory": 100, "continued": 100},
}
assert sum(CASES.values()) >= 2000


def fuzzed(kind: str) -> Callable[[Any], Any]:
    """So many cases of damaged files of this kind."""
    return cases(CASES[kind])


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(*args: object) -> int:
    """The command line in this process: it answers, or says in one line what is wrong, and changes no file it reads."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(arg) for arg in args])
    assert code in (0, 1, 2), code
    text = err.getvalue()
    assert "Traceback" not in text
    if code == 2 or (code == 1 and not out.getvalue()):
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        assert text.rstrip("\n").isprintable()
    return code


def check(folder: Path, *commands: tuple[object, ...]) -> None:
    before = snapshot(folder)
    for command in commands:
        run(*command)
    assert snapshot(folder) == before


# damage

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30)]),
    st.sampled_from([-0.0, 0.5, 1.0, -1.5, 1e-320, 1e308, math.nan, math.inf, -math.inf]),
    st.sampled_from(
        ["", "\x1b[31mred", "[bold]x[/bold]", "[/x]", "../../etc", "os:system", "\ud800", "a" * 3000, "$\\a"]
    ),
    st.lists(st.integers(-2, 3), max_size=4),
    st.dictionaries(st.sampled_from(["id", "sha256", "x"]), st.integers(0, 2), max_size=2),
)


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        places(inner, found)
    return found


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON value with some entries replaced, removed or added; sometimes its text is damaged too."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        spots = places(value)
        if not spots:
            break
        container, key = spots[draw(st.integers(0, len(spots) - 1))]
        what = draw(st.integers(0, 9))
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container["extra"] = draw(ODD)
        elif what == 2 and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
            container[key] = container[key] * draw(st.sampled_from([-1, 0, 2, 0.5, 1e9, 1e-9, 10**20]))
        else:
            container[key] = draw(ODD)
    data = json.dumps(value).encode()
    return draw(damaged(data)) if draw(st.integers(0, 5)) == 0 else data


def spoiled(value: Any) -> st.SearchStrategy[bytes]:
    """The same, and still JSON."""

    def parses(data: bytes) -> bool:
        try:
            return isinstance(json.loads(data), dict)
        except ValueError:
            return False

    return damaged_json(value).filter(parses)


def near_the_front(data: bytes, head: int) -> st.SearchStrategy[bytes]:
    """Damage to the first bytes of a long file, where its structure is."""
    return damaged(data[:head]).map(lambda front: front + data[head:])


# files as they should be


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one sound file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    x = np.array([[0, 7, 9], [255, 1, 2], [130, 3, 4]], dtype=np.uint8)
    np.savez(folder / "tiny.npz", x=x, y=np.array([0, 1, 1]))
    data = dds.load_data(str(folder / "tiny.npz"))
    smoothed = dds.SmoothedClassifier(Half([1.0, 0, 0], 100.5 / 255), dds.L2Certificate(), num_classes=2)
    certify_run(smoothed, data, CertifyRequest(0.25, n0=10, n=100, seed=1), folder / "run", model_name="half")
    certify_run(
        smoothed,
        data,
        CertifyRequest(SigmaPolicy.search(0.25), n0=10, n=100, seed=1),
        folder / "searched",
        model_name="half",
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.array([0, 1]))
    idx = folder / "idx"
    idx.mkdir()
    (idx / "t10k-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + images.tobytes()
    )
    (idx / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 1]))
    name = next(iter(ARCHITECTURES))
    spec = ModelSpec(arch=name, classes=("a", "b"), mean=(0.5,), std=(0.25,), training_sigmas=(0.25,))
    torch.manual_seed(0)
    save_model(spec.build(), spec, folder / "net.safetensors")
    torch.save(torch.tensor([0.25, 0.5]), folder / "sigmas.pth")
    model, tiny = ("--model", folder / "net.safetensors"), ("--data", folder / "images.npz")
    tiny_run = ("memory", "apply", folder / "run", "--data", folder / "tiny.npz", "--store", folder / "memory")
    assert run(*tiny_run, "--out", folder / "applied") == 0
    assert run("certify", *model, *tiny, "--sigma", 0.25, "--n0", 5, "--n", 20, "--out", folder / "continued") == 0
    assert run("optimize", *model, *tiny, "--n", 100, "--seed", 1, "--out", folder / "sigmas.json") == 0
    return folder


def test_sound_files_are_read(good: Path) -> None:
    """Else damage would prove nothing."""
    model, table = ("--model", good / "net.safetensors"), good.parent / "table.tsv"
    for name in ("run", "searched", "applied", "continued"):
        check(good, ("verify", good / name), ("export", good / name, table, "--format", "dds"))
        assert run("verify", good / name) == 0
    for source in (good / "images.npz", f"fashion-mnist:{good / 'idx'}"):
        assert run("predict", *model, "--data", source, *PREDICT) == 0
    images = ("--data", good / "images.npz")
    assert run("sigmas", "export", good / "sigmas.json", good.parent / "out.pth") == 0
    assert run("sigmas", "import", good / "sigmas.pth", *model, *images, "--out", good.parent / "in.json") == 0
    assert run("memory", "verify", good / "memory") == 0


@fuzzed("header")
@given(data=st.data())
def test_header(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-header"
    shutil.copytree(good / "run", folder, dirs_exist_ok=True)
    bytes_ = data.draw(damaged_json(json.loads((good / "run" / "header.json").read_text())))
    (folder / "header.json").write_bytes(bytes_)
    table = folder.parent / "table.tsv"
    check(folder, ("verify", folder), ("export", folder, table, "--format", "dds"))
    if data.draw(st.integers(0, 9)) == 0:
        check(folder, ("analyze", folder), ("analyze", folder, "--json"))
    if data.draw(st.integers(0, 19)) == 0:
        check(folder, ("verify", folder, "--resample", 1, "--data", good / "tiny.npz"), ("attack", folder))


@fuzzed("results")
@given(data=st.data())
def test_results(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-results"
    name = data.draw(st.sampled_from(["run", "searched"]))
    shutil.copytree(good / name, folder, dirs_exist_ok=True)
    lines = (good / name / "results.jsonl").read_bytes().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(damaged_json(json.loads(lines[at])))
    (folder / "results.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    table = folder.parent / "table.tsv"
    check(folder, ("verify", folder, "--json"), ("export", folder, table, "--format", "locuslab"))
    if data.draw(st.integers(0, 9)) == 0:
        check(folder, ("analyze", folder))


@fuzzed("sigmas")
@given(data=st.data())
def test_sigma_file(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-sigmas"
    folder.mkdir(exist_ok=True)
    path = folder / "sigmas.json"
    path.write_bytes(data.draw(damaged_json(json.loads((good / "sigmas.json").read_text()))))
    check(folder, ("sigmas", "export", path, folder.parent / "out.pth"))
    if data.draw(st.integers(0, 3)) == 0:
        out = folder.parent / "fuzz-certified"
        shutil.rmtree(out, ignore_errors=True)
        model = ("--model", good / "net.safetensors", "--data", good / "images.npz", "--block-size", 32)
        check(folder, ("certify", *model, "--sigmas", path, "--n0", 5, "--n", 20, "--out", out))


PREDICT = ("--sigma", 0.25, "--n", 20, "--max", 2, "--block-size", 32, "--seed", 1)


@fuzzed("npz")
@given(data=st.data())
def test_npz(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-npz"
    folder.mkdir(exist_ok=True)
    path = folder / "data.npz"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged((good / "images.npz").read_bytes())))
    else:
        arrays = odd_arrays(random.Random(data.draw(st.integers(0, 2**32))))
        np.savez(path, **arrays)
    check(folder, ("predict", "--model", good / "net.safetensors", "--data", path, *PREDICT))


def odd_arrays(rng: random.Random) -> dict[str, Any]:
    """Sound npz files with the wrong things in them."""
    shape = rng.choice([(2, 1, 28, 28), (2, 28, 28), (2, 784), (0, 1, 28, 28), (), (2,), (2, 0), (2, 3, 5, 5)])
    kind = rng.choice(["u1", "f4", "f8", "f2", "i8", "?", "c8", "U3", "M8[s]", "V4"])
    x = np.zeros(shape, dtype=kind)
    if kind.startswith("f") and x.size:
        x.flat[0] = rng.choice([0.5, math.nan, math.inf, -1.0, 1e4])
    y: Any = rng.choice([[0, 1], [0, 5], [-1, 0], [2**62, 0], [0.5, 1], [], [0], [[0], [1]], ["a", "b"], [0, 1, 2]])
    arrays: dict[str, Any] = {"x": x, "y": np.array(y), "extra": np.zeros(3)}
    for key in ("x", "y"):
        if rng.random() < 0.1:
            del arrays[key]
    return arrays


@fuzzed("idx")
@given(data=st.data())
def test_idx(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-idx"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good / "idx", folder)
    name = data.draw(st.sampled_from(["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]))
    bytes_ = (good / "idx" / name).read_bytes()
    if data.draw(st.booleans()):
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(data.draw(damaged(gzip.compress(bytes_, mtime=0))))
    else:
        (folder / name).write_bytes(data.draw(near_the_front(bytes_, 20)))
    check(folder, ("predict", "--model", good / "net.safetensors", "--data", f"fashion-mnist:{folder}", *PREDICT))


@fuzzed("safetensors")
@given(data=st.data())
def test_safetensors(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-safetensors"
    folder.mkdir(exist_ok=True)
    path, bytes_ = folder / "net.safetensors", (good / "net.safetensors").read_bytes()
    size = int.from_bytes(bytes_[:8], "little")
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(near_the_front(bytes_, 8 + size)))
    else:  # the header stays JSON, with odd values, also inside the metadata
        header = json.loads(bytes_[8 : 8 + size])
        if data.draw(st.booleans()):
            spec = json.loads(header["__metadata__"]["ddsmoothing"])
            text = data.draw(damaged_json(spec)).decode("utf-8", "replace")
            header["__metadata__"]["ddsmoothing"] = text
            front = json.dumps(header).encode()
        else:
            front = data.draw(damaged_json(header))
        path.write_bytes(len(front).to_bytes(8, "little") + front + bytes_[8 + size :])
    check(folder, ("predict", "--model", path, "--data", good / "images.npz", *PREDICT))


@fuzzed("memory")
@given(data=st.data())
def test_memory_file(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-memory"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path, bytes_ = folder / "memory", (good / "memory").read_bytes()
    at = data.draw(st.integers(0, len(bytes_) // 512 - 1)) * 512
    path.write_bytes(bytes_[:at] + data.draw(damaged(bytes_[at : at + 512])) + bytes_[at + 512 :])
    before = path.read_bytes()
    run("memory", "info", path)
    run("memory", "verify", path)
    assert path.read_bytes() == before


@fuzzed("continued")
@given(data=st.data())
def test_header_of_a_continued_run(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """What the command line takes from the header of a run that it continues."""
    folder = tmp_path_factory.getbasetemp() / "fuzz-continued"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good / "continued", folder)
    header = json.loads((good / "continued" / "header.json").read_text())
    header["config"] = json.loads(data.draw(spoiled(header["config"])))
    (folder / "header.json").write_text(json.dumps(header))
    check(folder, ("certify", "--model", good / "net.safetensors", "--data", good / "images.npz", "--out", folder))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@fuzzed("tensor")
@given(data=st.data())
def test_old_tensor(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-tensor"
    folder.mkdir(exist_ok=True)
    path = folder / "sigmas.pth"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged((good / "sigmas.pth").read_bytes())))
    else:
        torch.save(data.draw(st.sampled_from(odd_tensors())), path)
    model = ("--model", good / "net.safetensors", "--data", good / "images.npz")
    check(folder, ("sigmas", "import", path, *model, "--out", folder.parent / "imported.json"))


def odd_tensors() -> list[Any]:
    return [
        torch.tensor([0.25, 0.5]),
        torch.tensor([0.25]),
        torch.tensor([0.0, 0.5]),
        torch.tensor([math.nan, 0.5]),
        torch.tensor([math.inf, 0.5]),
        torch.tensor([1, 2]),
        torch.tensor([1 + 1j, 2]),
        torch.tensor([0.25, 0.5], dtype=torch.bfloat16),
        torch.tensor([0.25, 0.5], dtype=torch.float8_e4m3fn),
        torch.tensor([[0.25, 0.5]]),
        torch.zeros(0),
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([0.5]), (2,), check_invariants=True),
        torch.quantize_per_tensor(torch.tensor([0.25, 0.5]), 0.01, 0, torch.quint8),
        torch.zeros(2, device="meta"),
        {"sigma": torch.tensor([0.25, 0.5])},
        [0.25, 0.5],
        "sigma",
        None,
    ]
