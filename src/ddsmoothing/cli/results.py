"""``ddsmoothing analyze``, ``plot`` and ``export``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ddsmoothing.runs import Run

RUNS = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))


def summary(run: Run, radii: Sequence[float]) -> dict[str, Any]:
    """What ``analyze --json`` says of one run."""
    from ddsmoothing import analysis

    names = [f"{radius:g}" for radius in radii]
    accuracy = analysis.certified_accuracy(run, radii).tolist()
    interval = analysis.certified_accuracy_interval(run, radii).tolist()
    sigma = run.sigma
    return {
        "run": str(run.path),
        "level": run.level,
        "norm": run.header.norm,
        "sigma_policy": run.header.sigma_policy,
        "inputs": len(run),
        "partial": run.partial,
        "subset": run.header.subset.model_dump(),
        "sampler": run.header.sampler,
        "acr": None if run.stops_at_radius else analysis.acr(run),
        "acr_interval": None if run.stops_at_radius else analysis.acr_interval(run),
        "certified_accuracy": dict(zip(names, accuracy, strict=True)),
        "certified_accuracy_interval": dict(zip(names, interval, strict=True)),
        "abstained": float((run.prediction == -1).mean()),
        "sigma": {"mean": float(sigma.mean()), "min": float(sigma.min()), "max": float(sigma.max())},
        "samples_per_input": float(sum(row.samples for row in run.rows) / len(run)),
        "seconds_per_input": float(sum(row.seconds for row in run.rows) / len(run)),
    }


def print_table(runs: Sequence[Run], radii: Sequence[float] | None = None) -> None:
    """Certified accuracy (%) by radius and ACR, floored, with 95 % intervals; one table a norm."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ddsmoothing.analysis import RADII
    from ddsmoothing.bounds import floor_text
    from ddsmoothing.plots import labels_of

    radii = RADII if radii is None else radii
    for norm in sorted({run.header.norm for run in runs}):
        table = Table(box=box.SIMPLE, title=f"Certified accuracy (%) at {norm.upper()} radius, and ACR")
        table.add_column("sigma (level)")
        for column in ("inputs", *(f"{radius:g}" for radius in radii), "ACR"):
            table.add_column(column, justify="right")
        same = [run for run in runs if run.header.norm == norm]
        for run, label in zip(same, labels_of(same), strict=True):
            info = summary(run, radii)
            cells = []
            for key, value in info["certified_accuracy"].items():
                low, high = info["certified_accuracy_interval"][key]
                permille = round(value * len(run)) * 1000 // len(run)
                cells.append(f"{permille / 10:.1f}\n[dim]{100 * low:.0f}-{100 * high:.0f}[/dim]")
            average = "-"  # sampling stopped at a wanted radius, so larger ones were not looked for
            if info["acr"] is not None:
                low, high = info["acr_interval"]
                average = f"{floor_text(info['acr'], 3)}\n[dim]{low:.3f}-{high:.3f}[/dim]"
            table.add_row(escape(label), str(len(run)), *cells, average)
        Console(width=None if Console().is_terminal else 110).print(table)
    click.echo("Below each figure its 95 % interval over inputs. Radii in pixels of [0, 1].")


@click.command(
    epilog="""\b
Examples:
  ddsmoothing analyze runs/fixed runs/dds
  ddsmoothing analyze runs/dds --json"""
)
@RUNS
@click.option("--radii", default="0,0.25,0.5,0.75,1.0", show_default=True, help="Comma-separated, pixels in [0, 1].")
@click.option("--json", "as_json", is_flag=True, help="One object for one run, a list for several.")
def analyze(runs: tuple[Path, ...], radii: str, as_json: bool) -> None:
    """Certified accuracy at radii and average certified radius (ACR) of runs, one row a run."""
    from ddsmoothing.errors import InputError
    from ddsmoothing.runs import load_run

    try:
        values = [float(part) for part in radii.split(",")]
    except ValueError:
        raise InputError(f"--radii is {radii!r}, expected numbers such as 0,0.25,0.5.") from None
    loaded = [load_run(path) for path in runs]
    if as_json:
        found = [summary(run, values) for run in loaded]
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    else:
        print_table(loaded, values)


@click.command(
    epilog="""\b
Example:
  ddsmoothing plot runs/fixed runs/dds --out figures"""
)
@RUNS
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for SVG, PNG and PDF.")
def plot(runs: tuple[Path, ...], out: Path) -> None:
    """Certified accuracy against radius, one curve a run."""
    from ddsmoothing.plots import plot_certified_accuracy
    from ddsmoothing.runs import load_run

    for path in plot_certified_accuracy([load_run(path) for path in runs], out):
        click.echo(str(path))


@click.command(
    epilog="""\b
Example:
  ddsmoothing export runs/dds --format dds dds.tsv"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "format_name", required=True, help="locuslab (six columns) or dds (with sigma).")
def export(run: Path, file: Path, format_name: str) -> None:
    """Write a run as a tab-separated file of the field; radii are rounded down."""
    from ddsmoothing.runs import export_run, load_run

    export_run(load_run(run), format_name, file)
    click.echo(str(file))
