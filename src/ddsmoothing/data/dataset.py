"""A data set: inputs in a fixed order, their labels, and what tells it from another.

It knows no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.errors import DataError, InputError
from ddsmoothing.files import file_name
from ddsmoothing.inputs import INTEGERS
from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.labels import checked_labels
from ddsmoothing.shown import Form, Shown, checked_form, inputs_text

FINGERPRINT_INPUTS: Final = 64
LEVELS: Final = {np.dtype(str(kind).removeprefix("torch.")): levels for kind, levels in INTEGERS.items()}
GIVEN: Final = "arrays"  # the name of a data set that was given as arrays
EXPECTED: Final = "expected a Dataset, (x, y) of arrays or tensors, x alone, or a TensorDataset"


class MissingError(DataError):
    """The files of a data set are not where they should be."""


@runtime_checkable
class Inputs(Protocol):
    """What a data set needs of its inputs: an array ``(B, ...)``, or images that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, ...)``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, uint16 or float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> NDArray[Any]: ...


class DatasetForm(Form):
    """What the JSON of a data set holds: numbers as they are stored."""

    name: str
    split: str
    dtype: str
    x: list[Any]
    y: list[int] | None
    prepared: str
    classes: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset(Shown):
    """Inputs in a fixed order; a sample's index is its id.

    Arrays, tensors and data frames are taken; they are checked here, once, and labels with them.

    Attributes:
        name: Where it came from, as text that every file takes.
        split: ``test`` or ``train``.
        x: ``(B, ...)``, uint8 (X/255), uint16 (X/65535), or float32 in [0, 1]; other floats become float32.
        y: ``(B,)`` int64 from 0 on, or None where there are no labels.
        prepared: What was done to the stored inputs before they were numbers ``(B, ...)``, if anything.
        classes: Names of the classes, in the order of the labels; None where nobody said.
    Raises:
        InputError: Inputs or labels are not as they should be.
    """

    name: str
    split: str
    x: Inputs
    y: NDArray[np.int64] | None
    prepared: str = ""
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        x = checked_inputs(self.x)
        y = None if self.y is None else checked_labels(self.y, len(x))
        classes = None if self.classes is None else _checked_classes(self.classes, y)
        for key, value in (("name", file_name(self.name)), ("x", x), ("y", y), ("classes", classes)):
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self[i] for i in range(len(self)))

    def _line(self) -> str:
        known = len(self.classes) if self.classes is not None else None if self.y is None else len(np.unique(self.y))
        labels = "no labels" if known is None else f"{known:,} classes"
        shape = " x ".join(map(str, self.x.shape[1:]))
        kind = f"{self.x.dtype}, {self.transform.replace('none', 'as they are')}"
        return f"Dataset {self.name} ({self.split}): {inputs_text(len(self))} of {shape} ({kind}), {labels}"

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Labels; and the numbers of a table, but not the pixels of images."""
        found: dict[str, NDArray[Any]] = {"id": np.arange(len(self))}
        if self.y is not None:
            found["label"] = self.y
        if self.y is not None and self.classes is not None:
            found["class"] = np.array(self.classes, dtype=object)[self.y]
        if len(self.x.shape) == 2:
            numbers = np.asarray(self.x[:])
            found |= {f"x{i}": numbers[:, i] for i in range(numbers.shape[1])}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, as ``json.dumps`` takes it; ``from_dict`` makes the same data set of it. Files are smaller."""
        return {
            "kind": "Dataset",
            "name": self.name,
            "split": self.split,
            "dtype": str(self.x.dtype),
            "x": np.asarray(self.x[:]).tolist(),
            "y": None if self.y is None else self.y.tolist(),
            "prepared": self.prepared,
            "classes": None if self.classes is None else list(self.classes),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Dataset:
        """The data set that ``to_dict`` was asked of.

        Raises:
            InputError: It is no such dict.
        """
        read = checked_form(DatasetForm, "Dataset", found)
        kind = read.pop("dtype")
        if kind not in {"float32", *map(str, LEVELS)}:
            raise InputError(f"this is no Dataset: numbers of type {kind!r}, expected uint8, uint16 or float32.")
        try:
            read["x"] = np.array(read["x"], dtype=kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"this is no Dataset: {error}.") from error
        return cls(**read)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs, float32, and labels, int64 (-1 where there are none: not to be given on as labels)."""
        x = torch.from_numpy(np.array(self.x[index]))
        if (levels := LEVELS.get(self.x.dtype)) is not None:
            x = on_grid_values(x, levels, torch.float32)
        y = np.full(len(self), -1) if self.y is None else self.y
        return x, torch.from_numpy(np.array(y[index]))

    @property
    def transform(self) -> str:
        """How stored numbers become inputs."""
        levels = LEVELS.get(self.x.dtype)
        return self.prepared + ("none" if levels is None else f"x/{levels}")

    def fingerprint(self) -> dict[str, str | int | None]:
        """What tells this data set from another: name, split, length, transform, SHA-256 of some inputs and all labels.

        The inputs are the first, the last, and others at even distances between, in all at most 64. ``labels_sha256``
        is None without labels.
        """
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_INPUTS)).astype(np.int64))
        some = np.ascontiguousarray(self.x[places])
        digest = hashlib.sha256(f"{some.dtype.str}{some.shape}".encode() + some.tobytes())
        labels = None if self.y is None else hashlib.sha256(self.y.astype("<i8").tobytes())
        return {
            "name": self.name,
            "split": self.split,
            "length": len(self),
            "transform": self.transform,
            "sha256": digest.hexdigest(),
            "labels_sha256": None if labels is None else labels.hexdigest(),
        }


def as_dataset(data: object, name: str = GIVEN) -> Dataset:
    """What is clearly a data set as one: labelled inputs in memory.

    Args:
        data: A Dataset, ``(x, y)`` of arrays, tensors or data frames, x alone (no labels), or a TensorDataset.
        name: Of what is not a Dataset yet.
    Raises:
        InputError: It is something else, or not as it should be.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    parts = data if isinstance(data, tuple) else (data,)
    if len(parts) == 1 and hasattr(data, "columns"):
        raise InputError("the data are a table; give (frame[inputs], frame[label]), or frame[inputs].to_numpy() alone.")
    if not 1 <= len(parts) <= 2 or not all(hasattr(part, "shape") for part in parts[:1]):
        got = f"{len(parts)} parts" if isinstance(data, tuple) else type(data).__name__
        raise InputError(f"the data are {got}, {EXPECTED}; read others into arrays first.")
    return Dataset(name=name, split="test", x=parts[0], y=parts[1] if len(parts) > 1 else None)


def checked_inputs(x: Any) -> Inputs:
    """Inputs ``(B, ...)`` as a data set keeps them; InputError where they are none."""
    if isinstance(x, torch.Tensor):
        x = (x.float() if x.is_floating_point() else x).detach().cpu().numpy()
    elif hasattr(x, "to_numpy"):
        x = x.to_numpy()
    if not isinstance(x, Inputs):
        raise InputError(f"the inputs are {type(x).__name__}, expected an array or a tensor (B, ...).")
    if len(x.shape) < 2 or 0 in x.shape:
        hint = "; one input is a batch of one, x[None]" if len(x.shape) == 1 else ""
        raise InputError(f"the inputs have shape {tuple(x.shape)}, expected (B, C, H, W) or (B, d), not empty{hint}.")
    if x.dtype in LEVELS:
        return x
    if x.dtype.kind != "f":
        raise InputError(
            f"the inputs are {x.dtype}, expected uint8, uint16 or floating point; of a table x.astype(float)."
        )
    if not isinstance(x, np.ndarray):
        return x
    found = x.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise InputError("the inputs contain NaN or infinity, expected finite numbers.")
    return found


def _checked_classes(classes: Any, y: NDArray[np.int64] | None) -> tuple[str, ...]:
    names = tuple(classes.tolist() if isinstance(classes, np.ndarray) else classes)
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise InputError(f"the names of the classes are {names[:5]}, expected different words, one for each class.")
    if y is not None and len(names) <= y.max():
        raise InputError(f"{len(names)} names of classes for labels up to {y.max()}, expected {y.max() + 1} at least.")
    return tuple(map(file_name, names))
