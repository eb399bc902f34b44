"""Shards of a run put together: their rows in one folder, as if one process had made them. Nothing is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ddsmoothing.claims import level_named
from ddsmoothing.counting.fingerprint import check_behaviour
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.runs.schema import NOT_COMPARED, Header, Subset
from ddsmoothing.runs.store import Run, RunWriter, load_run

MAY_DIFFER: Final = NOT_COMPARED | {"device", "subset"}
WRITTEN: Final = 1000  # rows written at once
_NAMED: Final = 5  # inputs and fields in a message


def merge_runs(paths: Sequence[str | Path], out: str | Path, *, partial: bool = False) -> Run:
    """Write the rows of several runs, each input once, to a new run folder.

    Args:
        paths: shards of one run, or parts of it: their headers agree but for shard, device, versions and time.
        out: a folder that does not exist or is empty.
        partial: accept missing inputs; ``certify`` continues the merged run.
    Raises: InputError, RunError naming what disagrees, what is there twice, or what is missing; nothing is written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty; give another --out, or remove it.")
    runs = [load_run(path) for path in paths]
    if not runs:
        raise InputError("got no runs, expected the shards to merge.")
    for run in runs:
        _check(runs[0], run)
    header = _merged([run.header for run in runs])
    _check_inputs(runs, header, partial)
    rows = sorted((row for run in runs for row in run.rows), key=lambda row: row.id)
    with RunWriter(out, header) as writer:
        for start in range(0, len(rows), WRITTEN):
            writer.append(rows[start : start + WRITTEN])
    return load_run(out)


def _check(first: Run, run: Run) -> None:
    """Raise RunError unless two headers are of one run."""
    if level_named(run.level).from_regions:
        raise RunError(f"{run.path} is of level {run.level}; merge the runs that its memory took, and apply it again.")
    old, new = (one.header.model_dump(mode="json", exclude=MAY_DIFFER) for one in (first, run))
    for dumped, one in ((old, first), (new, run)):
        if one.header.model.sha256 is not None:
            dumped["model"].pop("name")  # the same weights may lie elsewhere on another machine
        dumped["subset"] = one.header.subset.model_dump(exclude={"size", "shard"})
    if first.header.behaviour is not None and run.header.behaviour is not None:
        check_behaviour(first.header.behaviour, run.header.behaviour, str(first.path))
    names = [key for key in old if old[key] != new[key]]
    if names:
        details = "; ".join(f"{key} is {old[key]} and {new[key]}" for key in names[:_NAMED])
        raise RunError(f"{first.path} and {run.path} are not of one run: {details}.")


def _merged(headers: list[Header]) -> Header:
    """The header of the whole: that of the first, without its shard, and all devices and versions."""
    first = headers[0]
    subset = first.subset
    whole = range(0, first.data.length, subset.skip)[: subset.max]
    versions = {name: _joined(header.versions.get(name) for header in headers) for name in first.versions}
    config = {key: value for key, value in first.config.items() if key != "shard"}
    if isinstance(words := config.get("options"), list) and "--shard" in words:  # of the command, for who continues it
        at = words.index("--shard")
        config["options"] = words[:at] + words[at + 2 :]
    changed = {
        "created": min(header.created for header in headers),
        "subset": Subset(skip=subset.skip, max=subset.max, size=len(whole)),
        "device": _joined(header.device for header in headers),
        "versions": versions,
        "config": config,
    }
    return first.model_copy(update=changed)


def _joined(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values}))


def _check_inputs(runs: list[Run], header: Header, partial: bool) -> None:
    """Raise RunError for inputs that are there twice, that do not belong to the run, or that are missing."""
    ids = range(0, header.data.length, header.subset.skip)[: header.subset.max]
    seen: dict[int, Run] = {}
    for run in runs:
        for row in run.rows:
            if row.id not in ids:
                raise RunError(f"{run.path} holds input {row.id}, which is not of this run's subset.")
            if row.id in seen:
                raise RunError(f"input {row.id} is in {seen[row.id].path} and in {run.path}; leave one of them out.")
            seen[row.id] = run
    missing = len(ids) - len(seen)
    if missing and not partial:
        some = [str(i) for i in islice((i for i in ids if i not in seen), _NAMED)]
        named = ", ".join(some) + (", .." if missing > _NAMED else "")
        raise RunError(
            f"{missing} of {len(ids)} inputs are missing ({named}): {_where(runs)}. Finish them, or add --partial."
        )


def _where(runs: list[Run]) -> str:
    """In which shards inputs are missing."""
    unfinished = [f"{run.path} has {len(run)} of {run.header.subset.size}" for run in runs if run.partial]
    shards = {run.header.subset.shard for run in runs if run.header.subset.shard is not None}
    for parts in sorted({parts for _, parts in shards}):
        absent = (f"{i}/{parts}" for i in range(1, parts + 1) if (i, parts) not in shards)
        if some := list(islice(absent, _NAMED + 1)):
            unfinished.append(f"shards {', '.join(some[:_NAMED])}{', ..' if len(some) > _NAMED else ''} were not given")
    return "; ".join(unfinished) or "no run holds them"
