"""Models that others made: TorchScript, ONNX, and models that return more than logits."""

from __future__ import annotations

import ast
import struct
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import Picked, load_model, model_hash, picked, probe_classes
from ddsmoothing.models.foreign import OnnxModel

SOURCE = Path(dds.__file__).parent
X = torch.rand(5, 1, 2, 3, generator=torch.Generator().manual_seed(0))
W = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Scores(nn.Module):
    """A linear model of six pixels and four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(W.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=(X.numpy() * 255).astype(np.uint8), y=np.zeros(5, int))
    return tmp_path / "x.npz"


# TorchScript


@pytest.fixture
def script(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Scores(), X[:1]).save(tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_program_is_loaded_on_trust_alone(script: Path, data: Path, cli: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"is a TorchScript program, and loading it runs what is in it; add --trust"):
        load_model(f"torchscript:{script}")
    model = load_model(f"torchscript:{script}", trust=True)
    assert torch.equal(model(X), Scores()(X))
    assert not model.training
    assert model_hash(model) is not None
    result = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=4).certify(X, 0.25, n=50, seed=0)
    same = dds.SmoothedClassifier(Scores(), dds.L2Certificate(), num_classes=4).certify(X, 0.25, n=50, seed=0)
    assert result.counts.tolist() == same.counts.tolist()
    command = ("predict", "--model", f"torchscript:{script}", "--data", data, "--sigma", 0.25, "--n", 50, "--seed", 0)
    refused = cli(*command)
    assert (refused.code, "add --trust" in refused.err, len(refused.err.splitlines())) == (2, True, 1)
    assert cli(*command, "--trust").code == 0


def test_a_name_in_a_file_is_never_trusted(script: Path, tmp_path: Path) -> None:
    """Neither in a file of ranges nor as the architecture of a checkpoint."""
    (tmp_path / "a.toml").write_text(f'[[range]]\nupper = 1.0\nmodel = "torchscript:{script}"\n')
    with pytest.raises((InputError, ModelError)):
        load_model(f"by-sigma:{tmp_path / 'a.toml'}", trust=True)
    torch.save({"arch": f"torchscript:{script}", "state_dict": {"weight": W}}, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="its architecture is unknown"):
        load_model(str(tmp_path / "net.pth"), trust=True)


def test_programs_that_cannot_be_loaded(script: Path, tmp_path: Path) -> None:
    script.write_bytes(script.read_bytes()[:300])
    torch.save({"weight": W}, tmp_path / "weights.pt")
    for name in ("net.pt", "weights.pt"):
        with pytest.raises(ModelError, match="is not a readable TorchScript file") as error:
            load_model(f"torchscript:{tmp_path / name}", trust=True)
        assert "\n" not in str(error.value)
    for kind in ("torchscript", "onnx"):
        for name in ("none.pt", ""):
            with pytest.raises(ModelError, match="no model file at"):
                load_model(f"{kind}:{tmp_path / name}", trust=True)
        for options in ({"arch": "small-cnn"}, {"weights_key": "ema"}, {"normalize": "none"}, {"random_weights": True}):
            with pytest.raises(InputError, match="says all of its model; leave"):
                load_model(f"{kind}:{script}", trust=True, **options)  # type: ignore[arg-type]


def test_one_place_alone_loads_programs() -> None:
    for path in SOURCE.rglob("*.py"):
        names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert "torch.jit.load" not in names or path == SOURCE / "models" / "foreign.py", path
        assert not names & {"torch.export.load", "torch.package.PackageImporter"}, path


# ONNX


@dataclass
class Tensor:
    name: str
    type: str
    shape: list[Any]


class Session:
    """As onnxruntime's, for the linear model; it notes what it is called with."""

    called: list[tuple[int, ...]] = []  # noqa: RUF012
    providers: list[str] = []  # noqa: RUF012
    inputs: list[Tensor] = []  # noqa: RUF012

    def __init__(self, data: bytes, providers: list[str]) -> None:
        if data != b"linear":
            raise RuntimeError(
                "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed\nProtobuf parsing failed."
            )
        Session.providers = providers

    def get_inputs(self) -> list[Tensor]:
        return Session.inputs

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        (x,) = feed.values()
        fixed = Session.inputs[0].shape[0]
        if isinstance(fixed, int) and len(x) != fixed:
            raise ValueError(f"INVALID_ARGUMENT\nGot: {len(x)} Expected: {fixed}")
        Session.called.append(x.shape)
        return [x.reshape(len(x), -1) @ W.numpy().astype(x.dtype), np.zeros(3)]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for onnxruntime, and a file for it."""
    module = types.ModuleType("onnxruntime")
    module.InferenceSession = Session  # type: ignore[attr-defined]
    module.get_available_providers = lambda: ["AzureExecutionProvider", "CPUExecutionProvider"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(Session, "called", [])
    monkeypatch.setattr(Session, "inputs", [Tensor("x", "tensor(float)", ["batch", 1, 2, 3])])
    (tmp_path / "net.onnx").write_bytes(b"linear")
    return tmp_path / "net.onnx"


def test_an_onnx_file_is_a_bare_callable(runtime: Path, data: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    model = load_model(f"onnx:{runtime}")
    assert Session.providers == ["CPUExecutionProvider"]
    torch.testing.assert_close(model(X), Scores()(X).detach())
    assert model_hash(model) is None
    assert "0x" not in repr(model)
    command = (
        "certify",
        "--model",
        f"onnx:{runtime}",
        "--data",
        data,
        "--sigma",
        0.25,
        "--n0",
        10,
        "--n",
        50,
        "--seed",
        0,
    )
    done = cli(*command, "--model-id", "linear-1", "--no-preflight", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert dds.load_run(tmp_path / "run").header.model.model_id == "linear-1"


def test_a_gpu_is_used_where_there_is_one(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(sys.modules["onnxruntime"], "get_available_providers", lambda: there)
    load_model(f"onnx:{runtime}")
    assert Session.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize("fixed", [1, 2, 5, 8])
def test_a_file_for_so_many_rows_gets_so_many(fixed: int, runtime: Path) -> None:
    """As many exporters fix them at one; the last rows are filled up, and what they give is left off."""
    Session.inputs[0].shape[0] = fixed
    model = OnnxModel(runtime)
    torch.testing.assert_close(model(X), Scores()(X).detach())
    assert {shape[0] for shape in Session.called} == {fixed}
    assert len(Session.called) == -(-5 // fixed)


@pytest.mark.parametrize(("kind", "dtype"), [("tensor(double)", torch.float64), ("tensor(float16)", torch.float16)])
def test_numbers_are_of_the_type_that_the_file_wants(kind: str, dtype: torch.dtype, runtime: Path) -> None:
    Session.inputs[0].type = kind
    assert OnnxModel(runtime)(X).dtype == dtype


def test_onnx_files_that_cannot_be_used(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Session.inputs.append(Tensor("mask", "tensor(bool)", [1]))
    with pytest.raises(ModelError, match=r"takes x tensor\(float\), mask tensor\(bool\), expected one input"):
        OnnxModel(runtime)
    Session.inputs[:] = [Tensor("ids", "tensor(int64)", ["batch", 9])]
    with pytest.raises(ModelError, match="expected one input of floating point"):
        OnnxModel(runtime)
    Session.inputs[:] = [Tensor("x", "tensor(float)", ["batch", 6])]
    model = OnnxModel(runtime)
    with pytest.raises(ModelError, match=r"does not take inputs of shape \(5, 1, 2, 2\)") as error:
        model(X[..., :2])
    assert "\n" not in str(error.value)
    runtime.write_bytes(b"x")
    with pytest.raises(ModelError, match="is not a readable ONNX file: Protobuf parsing failed"):
        OnnxModel(runtime)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"need onnxruntime: pip install 'ddsmoothing\[onnx\]'"):
        OnnxModel(runtime)


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + varint(len(value)) + value
    return bytes([number << 3]) + varint(value)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def linear_onnx(rows: int | None) -> bytes:
    """The linear model as an ONNX file: Flatten and MatMul, for so many rows or any number."""

    def value(name: bytes, shape: tuple[int | None, ...]) -> bytes:
        dims = b"".join(field(1, field(2, b"n") if size is None else field(1, size)) for size in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    def node(kind: bytes, inputs: list[bytes], output: bytes) -> bytes:
        return field(1, b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind))

    numbers = struct.pack("<24f", *W.flatten().tolist())
    weight = field(5, field(1, 6) + field(1, 4) + field(2, 1) + field(8, b"w") + field(9, numbers))
    graph = node(b"Flatten", [b"x"], b"f") + node(b"MatMul", [b"f", b"w"], b"y") + field(2, b"g") + weight
    graph += field(11, value(b"x", (rows, 1, 2, 3))) + field(12, value(b"y", (rows, 4)))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_with_onnxruntime_itself(rows: int | None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.onnx").write_bytes(linear_onnx(rows))
    model = load_model(f"onnx:{tmp_path / 'net.onnx'}")
    torch.testing.assert_close(model(X), Scores()(X).detach())
    with pytest.raises(ModelError, match="does not take inputs of shape"):
        model(X[..., :2])
    result = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=4).certify(X, 0.25, n=200, seed=0)
    assert result.counts.sum() == 5 * 200
    (tmp_path / "net.onnx").write_bytes(linear_onnx(rows)[:40])
    with pytest.raises(ModelError, match="is not a readable ONNX file"):
        load_model(f"onnx:{tmp_path / 'net.onnx'}")


# outputs that hold more than logits


@dataclass
class Output:
    """As Hugging Face's models return."""

    logits: torch.Tensor
    hidden: torch.Tensor


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.scores, self.wrap = Scores(), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.scores(x))


OUTPUTS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "object": (lambda logits: Output(logits, logits[:, :1]), "logits"),
    "dictionary": (lambda logits: {"logits": logits, "aux": logits}, "logits"),
    "tuple": (lambda logits: (torch.zeros(1), logits), "1"),
    "list": (lambda logits: [logits], "0"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_taken_out_of_what_holds_them(kind: str) -> None:
    wrap, key = OUTPUTS[kind]
    model = Wrapped(wrap).train()
    guess = "0" if key.isdigit() else "logits"
    with pytest.raises(ModelError, match=rf"expected logits .*; take them out of it by picked\(model, '{guess}'\)"):
        probe_classes(model, X)
    bare = picked(lambda x: model(x), key)
    for one in (picked(model, key), Picked(model, key), bare):
        assert torch.equal(one(X), Scores()(X))
        assert probe_classes(one, X) == 4
    assert picked(model, key).training
    assert model_hash(picked(model, key)) != model_hash(model)
    assert model_hash(bare) is None
    with pytest.raises(ModelError, match="the model's output has no tensor 'scores': it is ") as error:
        picked(model, "scores")(X)
    assert "(5, 4)" in str(error.value) or kind == "object"


def test_a_tensor_is_no_holder_and_its_attributes_no_logits() -> None:
    for key in ("T", "0", "data", "real"):
        with pytest.raises(ModelError, match=r"it is a tensor of shape \(5, 4\)"):
            picked(Scores(), key)(X)


def test_a_model_that_takes_sigma_still_does() -> None:
    class Told(nn.Module):
        takes_sigma = True

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> Any:
            return {"logits": x.flatten(1)[:, :2] * sigma[:, None]}

    model = picked(Told(), "logits")
    assert model.takes_sigma
    assert torch.equal(model(X, torch.full((5,), 2.0)), X.flatten(1)[:, :2] * 2)


def test_on_the_command_line(
    data: Path, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from test_foreign import OUTPUTS, Wrapped\n\n\ndef build():\n    return Wrapped(OUTPUTS['object'][0])\n"
    (tmp_path / "holding_nets.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ("predict", "--model", "holding_nets:build", "--data", data, "--sigma", 0.25, "--n", 50, "--seed", 0)
    refused = cli(*command)
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert "returned Output for" in refused.err
    assert "--model-output" in refused.err
    assert cli(*command, "--model-output", "logits").code == 0
