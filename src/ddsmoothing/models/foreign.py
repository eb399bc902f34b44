"""Models in files of other makers: TorchScript, which is code and is run, and ONNX, which is data for another library.

It knows no architectures and no weights by name.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from ddsmoothing.errors import InputError, ModelError, extra

TORCHSCRIPT, ONNX = "torchscript:", "onnx:"
PROVIDERS: Final = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first of them that is there


def is_foreign(name: str) -> bool:
    """Is it ``torchscript:FILE`` or ``onnx:FILE``?"""
    return name.startswith((TORCHSCRIPT, ONNX))


def load_foreign(name: str, trust: bool) -> Any:
    """The model of ``torchscript:FILE``, a module, or ``onnx:FILE``, a callable.

    Args:
        name: What and where.
        trust: The file is from somebody who is trusted: a TorchScript file is a program, and loading it runs it.
    Raises:
        InputError: It is a program, and nobody said that it is trusted.
        ModelError: It cannot be loaded.
    """
    kind, _, place = name.partition(":")
    path = Path(place)
    if not path.is_file():
        raise ModelError(f"no model file at {path}.")
    if f"{kind}:" == ONNX:
        return OnnxModel(path)
    if not trust:
        raise InputError(
            f"{path} is a TorchScript program, and loading it runs what is in it; add --trust (trust=True) if you "
            "trust whoever made it."
        )
    return _torchscript(path)


def _torchscript(path: Path) -> nn.Module:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the format is on its way out
            model = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise ModelError(f"{path} is not a readable TorchScript file: {_line(error)}.") from error
    loaded: nn.Module = model
    return loaded.eval()


class OnnxModel:
    """A model of an ONNX file: from inputs ``(B, ...)`` to its first output, on a GPU where onnxruntime has one.

    Args:
        path: Of the file.
    Raises:
        InputError: onnxruntime is not installed.
        ModelError: The file cannot be loaded, or wants other than one input of floating point.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            raise InputError(f"ONNX models need onnxruntime: {extra('onnx')}.") from None
        there = set(onnxruntime.get_available_providers())
        try:
            data = path.read_bytes()
            self._session = onnxruntime.InferenceSession(data, providers=[one for one in PROVIDERS if one in there])
        except Exception as error:  # its errors have no common class
            raise ModelError(f"{path} is not a readable ONNX file: {_line(error)}.") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in TYPES:
            got = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise ModelError(f"{path} takes {got}, expected one input of floating point.")
        self._input, self._type, self.path = inputs[0].name, TYPES[inputs[0].type], path
        first = inputs[0].shape[0] if inputs[0].shape else None
        self._batch = first if isinstance(first, int) else None  # else any number of rows

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r})"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.detach().cpu().numpy().astype(self._type, copy=False)
        size = self._batch or len(rows)
        parts = [self._run(rows[i : i + size], size) for i in range(0, len(rows), size)]
        return torch.from_numpy(np.concatenate(parts)).to(x.device)

    def _run(self, rows: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
        """The answers to at most ``size`` rows; a model of a fixed number of rows gets its last one repeated."""
        full = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)]) if len(rows) < size else rows
        try:
            found = np.asarray(self._session.run(None, {self._input: full})[0])
        except Exception as error:  # its errors have no common class
            raise ModelError(f"{self.path} does not take inputs of shape {full.shape}: {_line(error)}.") from error
        return found[: len(rows)]


TYPES: Final = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
