"""A table of finished text: every number in it is rounded to the safe side already."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells under named columns.

    Attributes:
        title: What it shows.
        columns: Their names; all but the first hold numbers.
        rows: One cell a column; a cell's second line is its interval.
        notes: What has to be said beside it.
        bold: Row and column of cells that stand out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()
