"""Labelled inputs by name: the shipped sample, idx folders and npz files.

It knows no models. Files are data: nothing in them is executed.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.errors import DataError, InputError, unknown

FINGERPRINT_INPUTS: Final = 64
SHIPPED: Final[dict[str, str]] = {"fashion-mnist-sample": "fashion-mnist-sample.npz"}
SPLITS: Final = ("test", "train")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Inputs in a fixed order; a sample's index is its id.

    Attributes:
        name, split: where it came from.   x: ``(B, ...)``, uint8 or float32 in [0, 1].   y: ``(B,)`` int64, or None.
    """

    name: str
    split: str
    x: NDArray[Any]
    y: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs, float32 in [0, 1], and labels, int64 (-1 where there are none)."""
        x = torch.from_numpy(np.array(self.x[index]))
        if x.dtype == torch.uint8:
            x = x.to(torch.float32) / 255
        y = np.full(len(self), -1) if self.y is None else self.y
        return x, torch.from_numpy(np.array(y[index]))

    @property
    def transform(self) -> str:
        """How stored numbers become inputs."""
        return "x/255" if self.x.dtype == np.uint8 else "none"

    def fingerprint(self) -> dict[str, str | int]:
        """What tells this data set from another: name, split, length, transform, SHA-256 of its first 64 inputs."""
        head = np.ascontiguousarray(self.x[:FINGERPRINT_INPUTS])
        digest = hashlib.sha256(f"{head.dtype.str}{head.shape}".encode() + head.tobytes())
        return {
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "transform": self.transform,
            "sha256": digest.hexdigest(),
        }


def load_data(name: str, *, split: str = "test", labels: bool = True) -> Dataset:
    """A data set by name.

    Args:
        name: ``fashion-mnist-sample`` (1,000 test images, shipped), ``fashion-mnist:DIR`` (a folder of idx files,
            gzipped or not), or ``FILE.npz`` with x (uint8, or float in [0, 1]) and y.
        split: ``test`` or ``train``, where the source has both.   labels: False accepts a file without y.
    Raises: DataError, InputError.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    kind, _, place = name.partition(":")
    if name in SHIPPED:
        with as_file(files("ddsmoothing") / "assets" / SHIPPED[name]) as path:
            return _npz(path, name, split, labels)
    if place and kind in FOLDERS:
        return FOLDERS[kind](Path(place), split)
    if Path(name).suffix == ".npz":
        return _npz(Path(name), Path(name).name, split, labels)
    known = [*SHIPPED, *(f"{key}:DIR" for key in FOLDERS), "FILE.npz"]
    raise InputError(unknown("data set", name, known))


def _npz(path: Path, name: str, split: str, labels: bool) -> Dataset:
    if not path.is_file():
        raise DataError(f"no data file at {path}. Shipped data sets: {', '.join(SHIPPED)}.")
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y") if key in file}
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path} is not a readable npz file of plain arrays: {error}.") from error
    if "x" not in arrays:
        raise DataError(f"{path} has no array x; expected x (inputs) and y (labels).")
    if "y" not in arrays and labels:
        raise DataError(f"{path} has no labels y. Add them, or say that there are none (--no-labels).")
    x = _checked_inputs(arrays["x"], path)
    return Dataset(name=name, split=split, x=x, y=_checked_labels(arrays["y"], x, path) if "y" in arrays else None)


def _checked_inputs(x: NDArray[Any], path: Path) -> NDArray[Any]:
    if x.ndim < 2 or 0 in x.shape:
        raise DataError(f"{path}: x has shape {x.shape}, expected (B, C, H, W) or (B, d), not empty.")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"{path}: x is {x.dtype}, expected uint8 or floating point in [0, 1].")
    if not np.isfinite(x).all():
        raise DataError(f"{path}: x contains NaN or infinity.")
    if x.min() < 0.0 or x.max() > 1.0:
        raise DataError(
            f"{path}: x lies in [{x.min():g}, {x.max():g}], expected [0, 1]; store uint8 or divide by 255, and put the "
            "normalisation into the model."
        )
    return x.astype(np.float32, copy=False)


def _checked_labels(y: NDArray[Any], x: NDArray[Any], path: Path) -> NDArray[np.int64]:
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise DataError(f"{path}: y is {y.dtype} of shape {y.shape}, expected {len(x)} integers.")
    y = y.astype(np.int64)  # unsigned numbers from 2^63 on become negative
    if y.min() < 0:
        raise DataError(f"{path}: y contains {y.min()}, expected classes 0, 1, ..")
    return y


def _fashion_mnist(folder: Path, split: str) -> Dataset:
    prefix = {"test": "t10k", "train": "train"}[split]
    x = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), 3)
    y = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(x) != len(y):
        raise DataError(f"{folder}: {len(x)} images but {len(y)} labels.")
    return Dataset(name="fashion-mnist", split=split, x=x[:, None], y=y.astype(np.int64))


FOLDERS: Final[dict[str, Callable[[Path, str], Dataset]]] = {"fashion-mnist": _fashion_mnist}


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"no {name} or {name}.gz in {folder}.")


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes with so many dimensions, gzipped if its name ends in .gz."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    header = 4 + 4 * ndim
    if len(data) < header or data[:4] != bytes([0, 0, 8, ndim]):
        raise DataError(f"{path} is not an idx file of {ndim}-dimensional unsigned bytes.")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    if len(data) - header != math.prod(shape) or 0 in shape:
        raise DataError(f"{path} says shape {shape} but holds {len(data) - header} bytes.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
