"""A table of finished text: every number in it is rounded to the safe side already."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells under named columns.

    Attributes:
        title: what it shows.   columns: their names; all but the first hold numbers.   rows: one cell a column; a
            cell's second line is its interval.   notes: what has to be said beside it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
