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
from ddsmoothing.errors import DataError, InputError

IDX_FILES: Final = {"test": "t10k", "train": "train"}


def read_npz(path: Path, name: str, split: str, labels: bool, any_range: bool) -> Dataset:
    """Inputs x and labels y of an npz file; without y only if labels is False, outside [0, 1] only with any_range.

    Raises: DataError.
    """
    if not path.is_file():
        raise DataError(f"no data file at {path}.")
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y", "classes") if key in file}
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path} is not a readable npz file of plain arrays: {error}.") from error
    if "x" not in arrays:
        raise DataError(f"{path} has no array x; expected x (inputs) and y (labels).")
    if "y" not in arrays and labels:
        raise DataError(f"{path} has no labels y. Add them, or say that there are none (--no-labels).")
    return from_arrays(
        path, name, split, arrays["x"], arrays.get("y"), any_range=any_range, classes=arrays.get("classes")
    )


def from_arrays(
    path: Path,
    name: str,
    split: str,
    x: NDArray[Any],
    y: NDArray[Any] | None,
    *,
    any_range: bool,
    classes: NDArray[Any] | None = None,
) -> Dataset:
    """The data set that a file holds; DataError, naming the file, where its arrays are not as they should be."""
    try:
        data = Dataset(name=name, split=split, x=x, y=y, classes=classes)  # type: ignore[arg-type]
    except InputError as error:
        raise DataError(f"{path}: {error}") from error
    found = data.x
    if found.dtype not in LEVELS and not any_range and isinstance(found, np.ndarray):
        low, high = float(found.min()), float(found.max())
        if low < 0.0 or high > 1.0:
            raise DataError(
                f"{path}: x lies in [{low:g}, {high:g}], expected [0, 1]; store uint8 or divide by 255, and put the "
                "normalisation into the model. For columns that are no pixels give --levels, their steps to the unit."
            )
    return data


def idx_folder(folder: Path, split: str, *, name: str, classes: tuple[str, ...] | None = None) -> Dataset:
    """The images and labels of a split in idx files, gzipped or not; classes are the names of labels from 0 on.

    Raises: DataError.
    """
    prefix = IDX_FILES[split]
    x = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), 3)
    y = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(x) != len(y):
        raise DataError(f"{folder}: {len(x)} images but {len(y)} labels.")
    return Dataset(name=name, split=split, x=x[:, None], y=y.astype(np.int64), classes=classes)


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
