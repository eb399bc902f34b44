"""Tables of numbers in CSV files: one row an input, one column the labels. Gaps and words in inputs are refused."""

from __future__ import annotations

import csv
import re
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.data.arrays import from_arrays
from ddsmoothing.data.dataset import Dataset
from ddsmoothing.errors import DataError, DdsmoothingWarning, printable, unknown

DELIMITERS: Final = ",;\t"  # the one that the first line has most of
NOT_A_NUMBER: Final = re.compile(r"[^0-9eE+\-.]")
WHOLE: Final = re.compile(r"-?[0-9]{1,18}(\.0*)?")
MOST_DECIMALS: Final = 6  # that a hint speaks of: a grid has at most 2**20 steps to the unit
SHOWN: Final = 5  # classes in one message


def csv_parts(name: str) -> tuple[Path, str] | None:
    """``FILE.csv:LABEL`` or ``FILE.csv`` as file and column (empty without one); None for other names."""
    found = re.fullmatch(r"(.+?\.csv)(?::(.*))?", name, re.IGNORECASE)
    return None if found is None else (Path(found[1]), found[2] or "")


def read_csv(path: Path, label: str, split: str, labels: bool, any_range: bool) -> Dataset:
    """A table of numbers, with the names of its columns in the first line.

    Args:
        path: The file, UTF-8; commas, semicolons or tabs between cells.
        label: The column that holds the classes: whole numbers from 0 on, or words, which are numbered in their order.
            All others are inputs. Empty: there is none.
        split: What the file is, for its identity.
        labels: False accepts a file without labels.
        any_range: Take numbers outside [0, 1].
    Raises:
        DataError: The file is not such a table; the first line that is not as it should be is named.
    """
    if not path.is_file():
        raise DataError(f"no data file at {path}.")
    if not label and labels:
        raise DataError(
            f"{path}: say which column holds the labels, {path.name}:LABEL, or that none does (--no-labels)."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _table(path, file, label, split, any_range)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file in UTF-8: {error}.") from error


def _table(path: Path, file: Any, label: str, split: str, any_range: bool) -> Dataset:
    first = file.readline()
    delimiter = max(DELIMITERS, key=first.count)
    names = next(csv.reader([first], delimiter=delimiter), [])
    place = _label_place(path, names, label)
    numbers, words, decimals = array("d"), [], 0
    for line, cells in _rows(path, file, delimiter, len(names)):
        if place is not None:
            words.append(cells.pop(place).strip())
        inputs = [cell.strip() for cell in cells]
        try:
            if NOT_A_NUMBER.search("".join(inputs)):
                raise ValueError
            numbers.extend(map(float, inputs))
        except ValueError:
            raise DataError(_named_cell(path, line, [n for i, n in enumerate(names) if i != place], inputs)) from None
        decimals = max(decimals, *(len(cell.partition(".")[2]) for cell in inputs))
    if not numbers:
        raise DataError(f"{path} has no rows below its names, expected numbers.")
    x = np.frombuffer(numbers, np.float64).reshape(-1, len(names) - (place is not None))
    y, classes = (None, None) if place is None else _classes(path, words)
    try:
        return from_arrays(path, path.name, split, x, y, any_range=any_range, classes=classes)
    except DataError as error:
        hint = f" They have up to {decimals} decimals: --levels {10**decimals}." if decimals <= MOST_DECIMALS else ""
        raise DataError(f"{error}{hint if '--levels' in str(error) else ''}") from None


def _label_place(path: Path, names: list[str], label: str) -> int | None:
    stripped = [name.strip() for name in names]
    if len(set(stripped)) < len(names) or "" in stripped or all(WHOLE.fullmatch(name) for name in stripped):
        raise DataError(
            f"{path}, line 1: got {printable(', '.join(stripped)[:100])!r}, expected names of columns, each once."
        )
    if label and label not in stripped:
        raise DataError(f"{path}: {unknown('column', label, stripped)}")
    if len(names) < 1 + bool(label):
        raise DataError(f"{path} has no columns beside {label}, expected numbers to be classified.")
    return stripped.index(label) if label else None


def _rows(path: Path, file: Any, delimiter: str, count: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    for cells in reader:
        if not cells or not any(cell.strip() for cell in cells):
            continue
        if len(cells) != count:
            raise DataError(f"{path}, line {reader.line_num + 1}: got {len(cells)} cells, expected {count}.")
        yield reader.line_num + 1, cells


def _named_cell(path: Path, line: int, names: list[str], cells: list[str]) -> str:
    """Which cell of a row is no number."""
    for name, cell in zip(names, cells, strict=True):
        try:
            if not NOT_A_NUMBER.search(cell):
                float(cell)
                continue
        except ValueError:
            pass
        what = f"is {printable(cell[:40])!r}" if cell else "is empty"
        advice = "leave the column out, or code it in numbers" if cell else "fill it, or leave the row out"
        return f"{path}, line {line}: {printable(name)} {what}, expected a number; {advice}."
    return f"{path}, line {line}: expected numbers."


def _classes(path: Path, words: list[str]) -> tuple[NDArray[np.int64], NDArray[np.str_] | None]:
    """Labels, and the names of the classes where they are words."""
    if "" in words:
        raise DataError(f"{path}: a label is empty (row {words.index('') + 1}); fill it, or leave the row out.")
    if all(WHOLE.fullmatch(word) for word in words):
        return np.array([int(word.partition(".")[0]) for word in words], np.int64), None
    names, y = np.unique(np.array(words), return_inverse=True)
    shown = ", ".join(f"{printable(name)} is {i}" for i, name in enumerate(names[:SHOWN].tolist()))
    more = f", .. ({len(names)} classes)" if len(names) > SHOWN else ""
    warnings.warn(
        f"{path.name}: labels are words, numbered in their order: {shown}{more}. The model has to number them so.",
        DdsmoothingWarning,
        stacklevel=2,
    )
    return y.astype(np.int64), names
