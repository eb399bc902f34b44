"""Arrays in files: npz, and the idx files of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.data.dataset import LEVELS, Dataset, MissingError
from ddsmoothing.errors import DataError

IDX_FILES: Final = {"test": "t10k", "train": "train"}


def read_npz(path: Path, name: str, split: str, labels: bool, any_range: bool) -> Dataset:
    """Inputs x and labels y of an npz file; without y only if labels is False, outside [0, 1] only with any_range.

    Raises: DataError.
    """
    if not path.is_file():
        raise DataError(f"no data file at {path}.")
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y") if key in file}
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path} is not a readable npz file of plain arrays: {error}.") from error
    if "x" not in arrays:
        raise DataError(f"{path} has no array x; expected x (inputs) and y (labels).")
    if "y" not in arrays and labels:
        raise DataError(f"{path} has no labels y. Add them, or say that there are none (--no-labels).")
    x = _checked_inputs(arrays["x"], path, any_range)
    return Dataset(name=name, split=split, x=x, y=_checked_labels(arrays["y"], x, path) if "y" in arrays else None)


def _checked_inputs(x: NDArray[Any], path: Path, any_range: bool) -> NDArray[Any]:
    if x.ndim < 2 or 0 in x.shape:
        raise DataError(f"{path}: x has shape {x.shape}, expected (B, C, H, W) or (B, d), not empty.")
    if x.dtype in LEVELS:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"{path}: x is {x.dtype}, expected uint8, uint16 or floating point in [0, 1].")
    if not np.isfinite(x).all():
        raise DataError(f"{path}: x contains NaN or infinity.")
    if not any_range and (x.min() < 0.0 or x.max() > 1.0):
        raise DataError(
            f"{path}: x lies in [{x.min():g}, {x.max():g}], expected [0, 1]; store uint8 or divide by 255, and put the "
            "normalisation into the model. For columns that are no pixels give --levels, their steps to the unit."
        )
    return x.astype(np.float32, copy=False)


def _checked_labels(y: NDArray[Any], x: NDArray[Any], path: Path) -> NDArray[np.int64]:
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise DataError(f"{path}: y is {y.dtype} of shape {y.shape}, expected {len(x)} integers.")
    y = y.astype(np.int64)  # unsigned numbers from 2^63 on become negative
    if y.min() < 0:
        raise DataError(f"{path}: y contains {y.min()}, expected classes 0, 1, ..")
    return y


def idx_folder(folder: Path, split: str, *, name: str) -> Dataset:
    """The images and labels of a split in idx files, gzipped or not.

    Raises: DataError.
    """
    prefix = IDX_FILES[split]
    x = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), 3)
    y = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(x) != len(y):
        raise DataError(f"{folder}: {len(x)} images but {len(y)} labels.")
    return Dataset(name=name, split=split, x=x[:, None], y=y.astype(np.int64))


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise MissingError(f"no {name} or {name}.gz in {folder}.")


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
