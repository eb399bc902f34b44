"""``ddsmoothing status`` and ``merge``: runs that are under way, and runs in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddsmoothing.cli.again import continuing
from ddsmoothing.cli.completing import RUN_FOLDER
from ddsmoothing.errors import printable

if TYPE_CHECKING:
    from ddsmoothing.runs.status import Status

RUNS = click.argument("runs", nargs=-1, required=True, type=RUN_FOLDER)


@click.command(
    epilog="""\b
Examples:
  ddsmoothing status runs/dds
  ddsmoothing status runs/shard-*
  ddsmoothing status runs/dds --json"""
)
@RUNS
@click.option("--json", "as_json", is_flag=True, help="One object for one run, a list for several.")
def status(runs: tuple[Path, ...], as_json: bool) -> None:
    """How far runs are, how fast, when they will end and what failed; also while another process writes."""
    from dataclasses import asdict

    from ddsmoothing.runs.status import status_of
    from ddsmoothing.runs.store import load_header

    found = [status_of(run) for run in runs]
    if as_json:
        values = [asdict(one) for one in found]
        click.echo(json.dumps(values[0] if len(values) == 1 else values, indent=2, default=str))
        return
    for one in found:
        click.echo(printable(_line(one)))
        if one.state in ("stopped", "died"):
            click.echo(f"  continue with: {continuing(one.path, load_header(one.path))}")
        for event in one.failures[-3:]:
            details = {key: value for key, value in event.items() if key not in ("time", "event")}
            click.echo(printable(f"  {event['time']} {event['event']}: {details}"))


def _line(status: Status) -> str:
    """One run in one line."""
    share = 100 * status.done // status.inputs if status.inputs else 100
    parts = [f"{status.path}: {status.state}, {status.done} of {status.inputs} inputs ({share} %)"]
    if status.kept:
        parts.append(f"{status.kept:,} samples of inputs in progress")
    if status.samples_per_second is not None and status.state == "running":
        parts.append(f"{status.samples_per_second:,.0f} samples/s")
    if status.ends is not None:
        parts.append(f"ends {'by' if status.at_most else 'about'} {status.ends}")
    if status.failures:
        parts.append(f"{len(status.failures)} failures")
    if status.owner is not None and status.state in ("running", "died"):
        how = "written by" if status.state == "running" else "its writer ended without a word:"
        parts.append(f"{how} {status.owner}")
    elif status.last is not None:
        parts.append(f"last event {status.last}")
    return "; ".join(parts)


@click.command(
    epilog="""\b
Example:
  ddsmoothing merge runs/shard-1 runs/shard-2 runs/shard-3 runs/shard-4 --out runs/whole"""
)
@RUNS
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new run folder.")
@click.option("--partial", is_flag=True, help="Accept missing inputs; certify --out continues the merged run.")
def merge(runs: tuple[Path, ...], out: Path, partial: bool) -> None:
    """Put the shards of a run together: the rows are those of one uninterrupted run.

    The headers must agree; inputs that are there twice or missing are named.
    """
    from ddsmoothing.runs.merge import merge_runs

    run = merge_runs(runs, out, partial=partial)
    click.echo(f"{len(run)} results of {len(runs)} runs in {run.path} (seed {run.header.seed})")
    if run.partial:
        left = run.header.subset.size - len(run)
        click.echo(f"partial: {left} inputs left; continue with:\n{continuing(run.path, run.header)}")
