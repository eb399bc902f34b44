"""How results of B inputs show themselves: in one line, as a table, as a data frame, as JSON, and in parts.

It knows no result: each class says its line, its columns and what its JSON holds.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ddsmoothing.errors import InputError, extra, first_error, printable

SHOWN: Final = 20  # rows of a table in a notebook
DIGITS: Final = Decimal("1e-4")  # to which numbers in it are rounded down


class Form(BaseModel):
    """What the JSON of a result holds, each class its own: nothing else, and no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shown:
    """Something that shows itself, by its line and its columns."""

    def _line(self) -> str:
        """What it is, in one line."""
        raise NotImplementedError

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Columns by name, with one entry an input."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return printable(self._line())

    def _repr_html_(self) -> str:
        """A table for notebooks; numbers are rounded down, and of many rows the first are shown."""
        columns = self._columns()
        size = max((len(column) for column in columns.values()), default=0)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        cells = zip(*(column[:SHOWN] for column in columns.values()), strict=True)
        rows = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in cells)
        more = f"<p>The first {SHOWN} of {size:,} rows.</p>" if size > SHOWN else ""
        line = html.escape(repr(self))
        return f"<table><caption>{line}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row an input.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ModuleNotFoundError:
            raise InputError(f"data frames need pandas: {extra('pandas')}.") from None
        return pandas.DataFrame({name: list(column) for name, column in self._columns().items()})


class Rows(Shown):
    """A result of B inputs, a frozen dataclass; an index takes out some of them, as a result of the same kind."""

    _each: ClassVar[tuple[str, ...]]  # the fields with one entry an input

    def __len__(self) -> int:
        return len(getattr(self, self._each[0]))

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Self:
        """Some of the inputs: a number, a slice, a mask ``(B,)`` or numbers of inputs."""
        places = np.atleast_1d(np.arange(len(self))[_plain_index(index)])
        if places.ndim != 1:
            raise IndexError(f"an index of {places.ndim} dimensions into a result of {len(self)} inputs, expected one.")
        return replace(self, **{name: _picked(getattr(self, name), places) for name in self._each})  # type: ignore[type-var]


class Stored(Rows):
    """The same with a form in JSON, from which it can be made again, bit for bit."""

    _form: ClassVar[type[Form]]
    _arrays: ClassVar[Mapping[str, str]]  # fields that are arrays, and their types

    def to_dict(self) -> dict[str, Any]:
        """Everything it was made of, as ``json.dumps`` takes it; ``from_dict`` makes the same result of it."""
        found = {one.name: plain(getattr(self, one.name)) for one in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **found}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The result that ``to_dict`` was asked of.

        Raises:
            InputError: It is no such dict.
        """
        read = checked_form(cls._form, cls.__name__, found)
        for name, kind in cls._arrays.items():
            read[name] = np.array(read[name], dtype=kind)
        if len({len(read[name]) for name in cls._each}) > 1:
            raise InputError(f"this is no {cls.__name__}: {', '.join(cls._each)} differ in length.")
        return cls._made(read)

    @classmethod
    def _made(cls, read: dict[str, Any]) -> Self:
        return cls(**read)


def checked_form(form: type[Form], kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dict that ``to_dict`` of this kind gave; InputError where it did not."""
    if not isinstance(found, Mapping) or found.get("kind") != kind:
        got = found.get("kind") if isinstance(found, Mapping) else type(found).__name__
        raise InputError(f"got {got!r}, expected what {kind}.to_dict() gave.")
    try:
        read = form.model_validate({name: value for name, value in found.items() if name != "kind"})
    except ValidationError as error:
        raise InputError(f"this is no {kind}: {first_error(error)}.") from error
    return {name: getattr(read, name) for name in form.model_fields}


def plain(value: Any) -> Any:
    """A value as JSON has it: lists, dicts, numbers and text."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if hasattr(value, "compact"):
        return plain(value.compact())
    if hasattr(value, "config"):
        return plain(value.config())
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def spread(values: NDArray[Any]) -> str:
    """``0.25``, or ``0.25 to 1`` of several."""
    if not len(values):
        return "-"
    low, high = (f"{end:,}" if values.dtype.kind in "iu" else f"{end:.3g}" for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def inputs_text(size: int) -> str:
    """``1 input``, ``1,000 inputs``."""
    return f"{size:,} input{'s' if size != 1 else ''}"


def _plain_index(index: Any) -> Any:
    if hasattr(index, "detach"):
        index = index.detach().cpu()
    index = np.asarray(index) if isinstance(index, (list, tuple)) or hasattr(index, "__array__") else index
    return index.astype(np.int64) if isinstance(index, np.ndarray) and not index.size else index


def _picked(values: Any, places: NDArray[np.int64]) -> Any:
    return values[places] if isinstance(values, np.ndarray) else tuple(values[i] for i in places)


def _cell(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        text = f"{Decimal(repr(float(value))).quantize(DIGITS, rounding=ROUND_FLOOR):f}"
        return text.rstrip("0").rstrip(".") or "0"
    return "" if value is None else html.escape(printable(str(value)))
