"""Runs for tests of the report: altered copies of real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ddsmoothing as dds
from ddsmoothing.runs.store import HEADER, RESULTS

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>]]>{{7*7}}|`'\""


def altered(run: dds.Run, header: dict[str, Any] | None = None, row: dict[str, Any] | None = None) -> dds.Run:
    """The run with other header fields, and the same other fields in every row; its files are not touched."""
    rows = tuple(one.model_copy(update=row or {}) for one in run.rows)
    return dataclasses.replace(run, header=run.header.model_copy(update=header or {}), rows=rows)


def written(run: dds.Run, folder: Path) -> dds.Run:
    """The run as a folder, read back."""
    folder.mkdir()
    (folder / HEADER).write_text(run.header.model_dump_json())
    (folder / RESULTS).write_text("".join(row.line() + "\n" for row in run.rows))
    return dds.load_run(folder)


def many(run: dds.Run, count: int) -> dds.Run:
    """A run of so many rows: those of a real one again and again, with radii of their own."""
    rows = tuple(
        run.rows[i % len(run)].model_copy(update={"id": i, "radius": (i * 7919 % count) / count}) for i in range(count)
    )
    data = run.header.data.model_copy(update={"length": count})
    subset = run.header.subset.model_copy(update={"skip": 1, "max": None, "size": count})
    return dataclasses.replace(run, header=run.header.model_copy(update={"data": data, "subset": subset}), rows=rows)


def hostile(run: dds.Run, folder: Path) -> dds.Run:
    """A run whose every name tries to break out of where it is shown."""
    header = {
        "model": run.header.model.model_copy(update={"name": HOSTILE}),
        "data": run.header.data.model_copy(update={"name": HOSTILE}),
        "device": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
    }
    bad = altered(run, header)
    return written(bad, folder / HOSTILE.replace("/", ""))
