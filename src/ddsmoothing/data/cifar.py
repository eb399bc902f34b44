"""CIFAR-10, from its binary files or from those for Python.

The latter are pickles. They are not unpickled: their opcodes are listed, and the one long string and the labels taken.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.data.dataset import Dataset, MissingError
from ddsmoothing.errors import DataError

FILES: Final = {"test": ("test_batch",), "train": tuple(f"data_batch_{i}" for i in range(1, 6))}
PIXELS: Final = 3 * 32 * 32
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"  # folders in the archives
CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
INTEGERS: Final = frozenset(("BININT1", "BININT2", "BININT", "INT"))
Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # pixels (B, 3072), labels (B,)


def cifar10(folder: Path, split: str) -> Dataset:
    """The data set in a folder, or in one of the archives' folders in it.

    Raises: DataError.
    """
    for place in (folder, folder / BINARY, folder / PYTHON):
        for suffix, read in READERS.items():
            paths = [place / f"{name}{suffix}" for name in FILES[split]]
            if all(path.is_file() for path in paths):
                batches = [_checked(path, *read(path)) for path in paths]
                x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
                images = x.reshape(-1, 3, 32, 32)
                return Dataset(name="cifar10", split=split, x=images, y=y.astype(np.int64), classes=CLASSES)
    names = ", ".join(f"{name}.bin" for name in FILES[split])
    raise MissingError(f"no {names} in {folder / BINARY} (cifar-10-binary.tar.gz), nor those for Python in {PYTHON}.")


def _binary(path: Path) -> Batch:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if len(data) % (1 + PIXELS):
        raise DataError(
            f"{path} has {len(data)} bytes, expected a multiple of {1 + PIXELS}: a label and an image each."
        )
    rows = data.reshape(-1, 1 + PIXELS)
    return rows[:, 1:], rows[:, 0]


def _python(path: Path) -> Batch:
    """A pickled dict whose ``data`` is an array ``(B, 3072)`` and whose ``labels`` is a list."""
    pixels, labels, text, flag, by_columns = b"", [], "", "", False
    try:
        for opcode, value, _ in pickletools.genops(path.read_bytes()):
            if isinstance(value, (str, bytes)):
                text = value if isinstance(value, str) else value.decode("latin-1")
                if len(text) >= PIXELS:
                    pixels, by_columns = text.encode("latin-1"), flag == "NEWTRUE"  # the flag before the bytes
            elif isinstance(value, int) and opcode.name in INTEGERS and text == "labels":
                labels.append(value)
            elif opcode.name in ("NEWTRUE", "NEWFALSE"):
                flag = opcode.name
        numbers = np.array(labels, np.uint8)
    except Exception as error:  # what a damaged pickle raises depends on where it is damaged
        raise DataError(f"{path} is not a CIFAR-10 file for Python: {error}.") from error
    if by_columns or len(pixels) != PIXELS * len(numbers):
        raise DataError(
            f"{path} holds {len(pixels)} bytes of pixels and {len(numbers)} labels, expected {PIXELS} for each label; "
            f"take the binary version ({BINARY})."
        )
    return np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS), numbers


def _checked(path: Path, x: NDArray[np.uint8], y: NDArray[np.uint8]) -> Batch:
    if len(y) == 0 or y.max() > 9:
        raise DataError(f"{path} holds no images, or a label above 9; it is not a CIFAR-10 file.")
    return x, y


READERS: Final[dict[str, Callable[[Path], Batch]]] = {".bin": _binary, "": _python}
