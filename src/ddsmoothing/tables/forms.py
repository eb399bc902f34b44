"""The forms of tables and records: Markdown, LaTeX, CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Container, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final

from ddsmoothing.bounds import floor_text
from ddsmoothing.errors import InputError, RunError, extra, table_cell
from ddsmoothing.files import write_durably
from ddsmoothing.tables.numbers import ceil_text
from ddsmoothing.tables.summary import Record
from ddsmoothing.tables.table import Table

DIGITS: Final = 6  # of numbers in CSV
_LATEX: Final = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    **{word: rf"$\{word}$" for word in ("sigma", "lambda", "alpha")},
    **{f"L{p}": rf"$\ell_{p}$" for p in (1, 2)},
}
_LATEX_PART: Final = re.compile(r"(?<![\w./:-])(?:sigma|lambda|alpha|L[12])(?![\w/:-]|\.\w)|[\\~^&%$#_{}]")


def markdown(tables: Sequence[Table]) -> str:
    """Tables under headings, intervals below their numbers."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [f"**{_md(table.title)}**", "", _line(table.columns)]
    lines.append("|" + "|".join([" --- ", *[" ---: "] * (len(table.columns) - 1)]) + "|")
    lines += [_line(row, {column for i, column in table.bold if i == at}) for at, row in enumerate(table.rows)]
    lines += [text for note in table.notes for text in ("", _md(note))]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], bold: Container[int] = ()) -> str:
    shown = []
    for column, cell in enumerate(cells):
        value, *more = (_md(line) for line in cell.split("\n"))
        shown.append("<br>".join([f"**{value}**" if column in bold else value, *more]))
    return "| " + " | ".join(shown) + " |"


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def latex(tables: Sequence[Table], *, label: str | None = None, caption: str | None = None) -> str:
    """Tables for the package booktabs, intervals small beside their numbers; sigma is a symbol.

    Args:
        tables: One, where label or caption is given.
        label: To refer to it.
        caption: Instead of its title; plain text, which is escaped.
    Raises:
        InputError: Label or caption for several tables, or a label of other characters than LaTeX's own use.
    """
    if (label is not None or caption is not None) and len(tables) > 1:
        raise InputError(
            f"a label and a caption are of one table, and these are {len(tables)}: take --only accuracy or --only acr, "
            "and runs of one norm and level."
        )
    if label is not None and not re.fullmatch(r"[A-Za-z0-9:._/+-]+", label):
        raise InputError(f"the label is {label!r}, expected letters, digits and :._/+- such as tab:accuracy.")
    return "\n".join(_latex_table(table, label, caption) for table in tables)


def _latex_table(table: Table, label: str | None, caption: str | None) -> str:
    rows = [" & ".join(_latex(name) for name in table.columns) + r" \\"]
    for at, row in enumerate(table.rows):
        rows.append(" & ".join(_latex_cell(cell, (at, i) in table.bold) for i, cell in enumerate(row)) + r" \\")
    notes = [rf"\par\footnotesize {_latex(note)}" for note in table.notes]
    columns = "l" + "r" * (len(table.columns) - 1)
    head = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title if caption is None else caption)}}}"]
    head += [] if label is None else [rf"\label{{{label}}}"]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*head, *body, r"\end{tabular}", *notes, r"\end{table}", ""])


def _latex(text: str) -> str:
    return _LATEX_PART.sub(lambda found: _LATEX.get(found[0], "\\" + found[0]), text)


def _latex_cell(cell: str, bold: bool = False) -> str:
    if re.fullmatch(r"-[0-9.]+", cell):
        return f"${cell}$"
    value, _, interval = cell.partition("\n")
    shown = rf"\textbf{{{_latex(value)}}}" if bold else _latex(value)
    return shown + (rf" {{\scriptsize {_latex(interval).replace('-', '--')}}}" if interval else "")


def csv_text(records: Sequence[Record], *, exact: bool = False) -> str:
    """Records as comma-separated values with a header line; an unknown value is an empty cell.

    Text from files has no control characters, and what a spreadsheet would take for a formula begins with ``'``.

    Args:
        exact: numbers as they are, for counts and what follows from them; otherwise rounded down to six digits, and
            upper ends of intervals, abstentions and wrong certificates up.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(records[0])
    writer.writerows([_csv_cell(key, value, exact) for key, value in record.items()] for record in records)
    return text.getvalue()


def _csv_cell(key: str, value: Any, exact: bool) -> Any:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if isinstance(value, str):
        return table_cell(value)
    if exact or not isinstance(value, float):
        return value
    return (ceil_text if key.endswith("_high") or key in ("abstained", "certified_wrong") else floor_text)(
        value, DIGITS
    )


def json_text(value: Any) -> str:
    """JSON with full numbers."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_parquet(records: Sequence[Record], path: Path) -> None:
    """Records as a Parquet file, numbers as they are.

    Raises: InputError without pyarrow, RunError where the file cannot be written.
    """
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"Parquet needs pyarrow: {extra('parquet')}; or take another format.") from None
    try:
        parquet.write_table(pa.Table.from_pylist(list(records)), whole := BytesIO())
        write_durably(path, whole.getvalue())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}.") from error
