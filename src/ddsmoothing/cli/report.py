"""``ddsmoothing report`` and ``card``: runs for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddsmoothing.cli.completing import DATA_NAME, RUN_FOLDER
from ddsmoothing.cli.messages import say
from ddsmoothing.errors import InputError

if TYPE_CHECKING:
    from ddsmoothing.data import Dataset
    from ddsmoothing.runs import Results

THUMBNAILS = 500


@click.command(
    epilog="""\b
Examples:
  ddsmoothing report runs/fixed runs/dds --out report.html
  ddsmoothing report runs/dds --data test.npz --thumbnails 200 --out report.html
  ddsmoothing report runs/dds --thumbnails none --out report.html"""
)
@click.argument("runs", nargs=-1, required=True, type=RUN_FOLDER)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page to write.")
@click.option(
    "--data",
    multiple=True,
    type=DATA_NAME,
    help="Data set of the runs, for pictures; shipped ones are found by themselves.",
)
@click.option("--thumbnails", default=str(THUMBNAILS), show_default=True, help="Inputs that get pictures, or none.")
@click.option("--radius", type=float, help="At which the accuracy stands first; any other can be chosen on the page.")
def report(runs: tuple[Path, ...], out: Path, data: tuple[str, ...], thumbnails: str, radius: float | None) -> None:
    """Write runs, side by side, as one HTML page: how good, what it means, figures, and every input in a table.

    The page is self-contained and needs no network. See docs/report.md.
    """
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.report import write_report
    from ddsmoothing.runs import load_results

    if thumbnails != "none" and not thumbnails.isdecimal():
        raise InputError(f"--thumbnails is {thumbnails!r}, expected a number of inputs, or none.")
    if radius is not None and not 0.0 < radius < inf:
        raise InputError(f"--radius is {radius}, expected a number above 0, in the units of the inputs.")
    count = 0 if thumbnails == "none" else int(thumbnails)
    loaded = [load_results(path) for path in runs]
    with SampleProgress(max(1, count * len(loaded)), "drawing inputs", "pictures") as progress:
        found = _data(loaded, data) if count else []
        page = write_report(loaded, out, found, thumbnails=count, radius=radius, progress=progress)
    say(str(page), out)


def _data(runs: Sequence[Results], given: tuple[str, ...]) -> list[Dataset]:
    """The data sets given, and those of runs on shipped ones; other names that files hold are not loaded."""
    from ddsmoothing.data import SHIPPED, load_data
    from ddsmoothing.runs import Run

    made_on = [run.header.data for run in runs if isinstance(run, Run)]
    if given and not made_on:
        raise InputError("--data was given, but imported results do not say which data set they are of; leave it out.")
    names = dict.fromkeys((name, identity.split) for name in given for identity in made_on)
    names |= dict.fromkeys((one.name, one.split) for one in made_on if one.name in SHIPPED)
    return [load_data(name, split=split, labels=False) for name, split in names]


@click.command(
    epilog="""\b
Example:
  ddsmoothing card runs/dds --out certificate.json --markdown CERTIFICATE.md"""
)
@click.argument("run", type=RUN_FOLDER)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The JSON file to write.")
@click.option("--markdown", type=click.Path(path_type=Path), help="The same as Markdown, for a model card.")
@click.option("--store", type=click.Path(path_type=Path), help="The memory's file, for a run of level memory.")
@click.option("--data", type=DATA_NAME, help="With --store: the run's data set; needed unless it is a shipped one.")
def card(run: Path, out: Path, markdown: Path | None, store: Path | None, data: str | None) -> None:
    """Write a certificate card: what a run certified, how, with which results, and what it does not claim.

    Its JSON Schema is shipped as ddsmoothing/report/certificate.schema.json. See docs/report.md.
    """
    from ddsmoothing.cli.loading import points_of
    from ddsmoothing.report import write_card
    from ddsmoothing.runs import load_run

    loaded = load_run(run)
    point = None if store is None else points_of(run, {"data": data})
    write_card(loaded, out, markdown, store=store, point=point)
    for path in (out, markdown):
        if path is not None:
            say(str(path), out, markdown)
