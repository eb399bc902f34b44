"""``ddsmoothing analyze``, ``plot``, ``export`` and ``import``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ddsmoothing.cli.completing import DATA_NAME, RUN_FOLDER
from ddsmoothing.cli.messages import say
from ddsmoothing.errors import InputError, printable

if TYPE_CHECKING:
    from ddsmoothing.data import Dataset
    from ddsmoothing.runs import Results, Run
    from ddsmoothing.tables import Shown, Table

FORMATS: Final = ("text", "md", "latex", "csv", "json", "parquet")
ONLY: Final = ("accuracy", "acr")
NORM, VOTE = click.Choice(["l2", "l1"]), click.Choice(["plurality", "pairwise"])
TABLES: Final = click.Choice(["locuslab", "dds", "csv", "parquet"])  # of export: the field's own, and rows
RUNS = click.argument("runs", nargs=-1, required=True, type=RUN_FOLDER)
WIDTH: Final = 110  # of tables where there is no terminal


def print_table(runs: Sequence[Results], radii: Sequence[float] | None = None) -> None:
    """Certified accuracy (%) by radius and ACR, floored, with 95 % intervals; one table a norm and level."""
    from ddsmoothing.analysis import RADII
    from ddsmoothing.tables import accuracy_tables

    _print(accuracy_tables(runs, RADII if radii is None else radii))


def print_noise(runs: Sequence[Results]) -> None:
    """Abstentions, certificates of a wrong class, sigma and cost; one table a norm and level."""
    from ddsmoothing.tables import noise_tables

    _print(noise_tables(runs))


def _print(tables: Sequence[Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Shown

    for table in tables:
        shown = Shown(box=box.SIMPLE)
        for index, column in enumerate(table.columns):
            shown.add_column(escape(column), justify="right" if index else "left")
        for at, row in enumerate(table.rows):
            shown.add_row(*(_cell(cell, (at, i) in table.bold) for i, cell in enumerate(row)))
        console = Console(width=None if Console().is_terminal else WIDTH)
        console.print(escape(table.title), style="bold", highlight=False, soft_wrap=True)
        console.print(shown)
        for note in table.notes:
            console.print(escape(note), style="dim", highlight=False, soft_wrap=True)


def _cell(text: str, bold: bool) -> str:
    from rich.markup import escape

    value, _, interval = text.partition("\n")
    shown = f"[bold]{escape(value)}[/bold]" if bold else escape(value)
    return shown + (f"\n[dim]{escape(interval)}[/dim]" if interval else "")


@click.command(
    epilog="""\b
Examples:
  ddsmoothing analyze runs/fixed runs/dds
  ddsmoothing analyze runs/dds --against runs/fixed
  ddsmoothing analyze runs/dds --per-class --format latex --out classes.tex
  ddsmoothing analyze runs/* --format latex --only accuracy --no-intervals --bold --label tab:accuracy
  ddsmoothing analyze runs/fixed runs/dds --format parquet --out results.parquet"""
)
@RUNS
@click.option(
    "--radii", default="0,0.25,0.5,0.75,1.0", show_default=True, help="Comma-separated, in the units of the inputs."
)
@click.option("--per-class", is_flag=True, help="One line a class.")
@click.option("--against", type=RUN_FOLDER, help="A run: who won and who lost radius against it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="latex is for booktabs; parquet needs the extra of that name.",
)
@click.option("--json", "as_json", is_flag=True, help="As --format json: an object for one run, a list for several.")
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file, not to the terminal.")
@click.option("--names", help="Comma-separated: what to call the runs, in their order; with --against its name last.")
@click.option("--only", type=click.Choice(ONLY), help="These columns alone, in the table of accuracies and ACR.")
@click.option("--no-intervals", is_flag=True, help="Leave the intervals out of that table.")
@click.option("--bold", is_flag=True, help="Bold: the largest figure of each of its columns.")
@click.option("--label", help="Of a LaTeX table, such as tab:accuracy.")
@click.option("--caption", help="Of a LaTeX table, instead of its title.")
def analyze(
    runs: tuple[Path, ...],
    radii: str,
    per_class: bool,
    against: Path | None,
    form: str,
    as_json: bool,
    out: Path | None,
    names: str | None,
    only: str | None,
    no_intervals: bool,
    bold: bool,
    label: str | None,
    caption: str | None,
) -> None:
    """Certified accuracy, average certified radius (ACR), abstentions, sigma and cost of runs.

    Runs of different norm, units or level get separate tables. Below several fixed sigmas stands their envelope: the
    best of them at each radius, which no single classifier attains.
    """
    from ddsmoothing.runs import load_results
    from ddsmoothing.tables import Shown

    form = "json" if as_json else form
    if per_class and against is not None:
        raise InputError("--per-class and --against are two tables; ask for one at a time.")
    if (only or no_intervals or bold) and (per_class or against is not None or form not in ("text", "md", "latex")):
        raise InputError("--only, --no-intervals and --bold are of the table of accuracies, as text, md or latex.")
    if (label is not None or caption is not None) and form != "latex":
        raise InputError(f"--label and --caption are of a LaTeX table; --format is {form}.")
    if (form == "parquet") > (out is not None) or (form == "text" and out is not None):
        raise InputError(f"--format {form} {'needs' if out is None else 'cannot go to'} --out FILE.")
    shown = Shown(
        names=() if names is None else tuple(name.strip() for name in names.split(",")),
        only=only,
        intervals=not no_intervals,
        bold=bold,
    )
    values = _radii(radii)
    loaded = [load_results(path) for path in runs]
    baseline = None if against is None else load_results(against)
    views = _views(loaded, values, per_class, baseline, shown)
    if form == "text":
        return _print(views.tables())
    return _write(form, views, out, label, caption)


def _radii(text: str) -> list[float]:
    from math import inf

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0.0 <= value < inf for value in values) or len(set(values)) < len(values):
        raise InputError(f"--radii is {text!r}, expected numbers from 0 on, each once, such as 0,0.25,0.5.")
    return values


@dataclass(frozen=True, kw_only=True)
class _Views:
    """What was asked for: as tables, as flat records, and as values for JSON."""

    tables: Callable[[], list[Table]]
    records: Callable[[], list[dict[str, Any]]]
    values: Callable[[], list[Any]]


def _views(runs: list[Results], radii: list[float], per_class: bool, baseline: Results | None, shown: Shown) -> _Views:
    from ddsmoothing import tables as t

    if baseline is not None:
        return _Views(
            tables=lambda: t.pair_tables(runs, baseline, shown.names),
            records=lambda: [record for run in runs for record in t.pair_records(run, baseline)],
            values=lambda: [t.pair_summary(run, baseline) for run in runs],
        )
    if per_class:
        return _Views(
            tables=lambda: t.class_tables(runs, radii, shown.names),
            records=lambda: [record for run in runs for record in t.class_records(run, radii)],
            values=lambda: [t.class_records(run, radii) for run in runs],
        )
    return _Views(
        tables=lambda: (
            t.accuracy_tables(runs, radii, shown) + ([] if shown.only else t.noise_tables(runs, shown.names))
        ),
        records=lambda: t.summary_records(runs, radii, shown.names),
        values=lambda: [t.summary(run, radii) for run in runs],
    )


def _write(form: str, views: _Views, out: Path | None, label: str | None, caption: str | None) -> None:
    from ddsmoothing import tables as t
    from ddsmoothing.files import write_durably

    if form == "parquet" and out is not None:
        t.write_parquet(views.records(), out)
        return say(str(out), out)
    if form == "csv":
        text = t.csv_text(views.records())
    elif form == "json":
        found = views.values()
        text = t.json_text(found[0] if len(found) == 1 else found)
    elif form == "latex":
        text = t.latex(views.tables(), label=label, caption=caption)
    else:
        text = t.markdown(views.tables())
    if out is None:
        return click.echo(text, nl=False)
    write_durably(out, text)
    return say(str(out), out)


@click.command(
    epilog="""\b
Examples:
  ddsmoothing plot runs/fixed runs/dds --out figures
  ddsmoothing plot runs/dds --data test.npz --ids 0,20,40 --out figures"""
)
@RUNS
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for SVG, PNG and PDF.")
@click.option("--data", type=DATA_NAME, help="The runs' data set: also images beside noisy copies at their own sigma.")
@click.option("--split", default="test", show_default=True, help="test or train.")
@click.option("--ids", help="Comma-separated: which images; default some from the smallest sigma to the largest.")
def plot(runs: tuple[Path, ...], out: Path, data: str | None, split: str, ids: str | None) -> None:
    """Every figure that these runs have.

    \b
    certified_accuracy   against radius, one curve a run, and the envelope of fixed sigmas
    sigma                its histogram, and each input's radius against its sigma
    paired_radius        what a chosen sigma changes, input by input
    confidence           bounds on the probabilities behind the radii
    memory               what a certified memory cut off, in order
    extremes_RUN         images with the smallest and the largest sigma
    images_RUN           images at their own sigma (with --data)

    A shipped data set need not be named.
    """
    from ddsmoothing.plots import FIGURES, PHOTOS, images_figure, save
    from ddsmoothing.plots.style import radius_axis
    from ddsmoothing.runs import load_results

    loaded = [load_results(path) for path in runs]
    chosen = None if ids is None else _whole_numbers(ids)
    radius_axis(loaded)
    pictures = _pictures(loaded, data, split)
    if chosen is not None and not pictures:
        raise InputError("--ids names images, and none can be shown; say where they are with --data.")
    for name, picture in FIGURES.items():
        if picture.applies(loaded):
            click.echo(str(save(picture.draw(loaded), out, name)[0]))
    for name, run, dataset in pictures:
        if chosen is not None:
            click.echo(str(save(images_figure(run, dataset, chosen), out, f"images_{name}")[0]))
            continue
        for kind, photo in PHOTOS.items():
            if photo.applies(run):
                click.echo(str(save(photo.draw(run, dataset), out, f"{kind}_{name}")[0]))


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--ids is {text!r}, expected whole numbers such as 0,20,40.") from None


def _pictures(runs: Sequence[Results], data: str | None, split: str) -> list[tuple[str, Run, Dataset]]:
    """Runs whose images can be shown, each with its name and its data set; one of those that say the same."""
    from ddsmoothing.data import SHIPPED, load_data
    from ddsmoothing.runs import Run
    from ddsmoothing.tables import same_run

    found: list[tuple[str, Run, Dataset]] = []
    for run in runs:
        if not isinstance(run, Run) or any(same_run(other, run) for _, other, _ in found):
            continue
        shipped = run.header.sigma is None and run.header.data.name in SHIPPED
        if data is not None or shipped:
            name, part = (data, split) if data is not None else (run.header.data.name, run.header.data.split)
            alike = [one.name for one in runs].count(run.name) > 1
            found.append((f"{run.name}_{len(found) + 1}" if alike else run.name, run, load_data(name, split=part)))
    return found


@click.command(
    epilog="""\b
Examples:
  ddsmoothing export runs/dds --format dds dds.tsv
  ddsmoothing export runs/dds --format csv rows.csv"""
)
@click.argument("run", type=RUN_FOLDER)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", required=True, type=TABLES, help="Six columns, these and sigma, or all rows with their counts."
)
def export(run: Path, file: Path, form: str) -> None:
    """Write a run as a table of the field, radii rounded down, or as all its rows with their counts."""
    from ddsmoothing.files import write_durably
    from ddsmoothing.runs import export_run, load_run
    from ddsmoothing.tables import csv_text, row_records, write_parquet

    if form == "parquet":
        write_parquet(row_records(load_run(run)), file)
    elif form == "csv":
        write_durably(file, csv_text(row_records(load_run(run)), exact=True))
    else:
        export_run(loaded := load_run(run), form, file)
        said = loaded.header
        click.echo(f"note: such a file does not say: {said.norm}, level {said.level}, {said.vote} vote.", err=True)
    say(str(file), file)


@click.command(
    "import",
    epilog="""\b
Examples:
  ddsmoothing import cohen.tsv --sigma 0.25 --out runs/cohen
  ddsmoothing import dds.tsv --vote pairwise --out runs/theirs
  ddsmoothing analyze runs/cohen runs/theirs runs/dds""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--sigma", type=float, help="Of all rows, for a file without that column; unknown if left out.")
@click.option("--norm", type=NORM, default="l2", show_default=True, help="Of the radii; no such file says it.")
@click.option(
    "--vote", type=VOTE, default="plurality", show_default=True, help="Of the classifier; nor does it say that."
)
def import_results(file: Path, out: Path, sigma: float | None, norm: str, vote: str) -> None:
    """Take others' results, a tab-separated file of the field, beside ours: for analyze, plot and report.

    Columns are found by name: idx label predict radius correct, and sigma and time if there; -1 abstains. Radii in such
    files are rounded and there are no counts: nothing can be verified, and no memory takes them. Their level is taken
    to be `pointwise`, and their vote that of papers; a table that `export` made of a pairwise run needs
    --vote pairwise.
    """
    from ddsmoothing.runs import import_file

    run = import_file(file, out, sigma=sigma, norm=norm, vote=vote)
    click.echo(f"{len(run)} rows of {printable(run.header.source)} in {out}; radii are rounded and prove nothing.")
