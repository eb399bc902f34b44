"""``report.html``: runs as one self-contained page. It computes nothing that analysis, tables and plots do not."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from ddsmoothing.bounds import floor_text
from ddsmoothing.data import Dataset
from ddsmoothing.errors import RunError, printable
from ddsmoothing.files import write_durably
from ddsmoothing.plots import FIGURES, PHOTOS, Figure, Picture, curves, svg_text
from ddsmoothing.plots.chosen import own_sigma
from ddsmoothing.report.claims import limits, radii_for, set_risk, statement
from ddsmoothing.report.headers import common_facts, different_facts
from ddsmoothing.report.overview import tiles_of, title_of
from ddsmoothing.report.render import render_page
from ddsmoothing.report.rows import COLUMNS, rows_data
from ddsmoothing.report.thumbnails import INPUTS, Pictures, datasets_of, is_images, pictures_of
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables import (
    Table,
    accuracy_tables,
    alike,
    labelled,
    labels_of,
    noise_tables,
    provenance,
    side_by_side,
)
from ddsmoothing.tables.facts import rule_text, vote_of

LARGEST_PAGE: Final = 20_000_000  # bytes
Progress = Callable[[int], None]
IMPORTED: Final = (
    "Radii rounded by others, without the counts behind them, shown for comparison. Nothing of them can be recomputed, "
    "so nothing is certified here."
)


def write_report(
    runs: Sequence[Results],
    out: str | Path,
    data: Sequence[Dataset] = (),
    *,
    thumbnails: int = INPUTS,
    radius: float | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write runs side by side as one HTML page that needs no network; the same runs give the same bytes.

    Args:
        runs: Finished or partial, or imported.
        out: The file.
        data: Data sets of the runs, for pictures.
        thumbnails: At most so many inputs of each get pictures.
        radius: At which the accuracy stands first; None: where half of what is certified at 0 still is.
        progress: Called with the number of pictures and figures made.
    Raises:
        RunError: The page would be too large or cannot be written.
        InputError: Another data set.
    """
    datasets = datasets_of(runs, data)
    pictures = pictures_of(runs, datasets, thumbnails, progress)
    figures = []
    for figure in _figures(runs, datasets if thumbnails else [None] * len(runs)):
        figures.append(figure)
        if progress is not None:
            progress(1)
    drawn = [figure for figure in figures if figure["curves"]]
    tiles = tiles_of(runs, radius)
    lead = next((one for one in drawn if any(run is runs[tiles["run"]] for run in one["runs"])), None)
    page = render_page(
        "page.html.j2",
        title=title_of(runs),
        marks=(*_marks(runs), *side_by_side(runs)),
        names=list(dict.fromkeys(printable(run.name) for run in runs)),
        version=version("ddsmoothing"),
        tiles=tiles,
        labels=labels_of(runs),
        lead=lead,
        claims=_claims(runs),
        headlines=_headlines(runs),
        figures=[figure for figure in figures if figure is not lead],
        pictures_note=_pictures_note(pictures),
        row_columns=[(n, title) for n, title in COLUMNS.items() if pictures.png or n not in ("clean", "noisy")],
        limits=_limits(runs),
        common=common_facts(runs),
        different=different_facts(runs),
        data=rows_data(runs, datasets, pictures) | {"curves": [figure["curves"] for figure in drawn], "tiles": tiles},
    )
    if (size := len(page.encode())) > LARGEST_PAGE:
        raise RunError(
            f"the page would have {size / 1e6:.0f} MB, more than {LARGEST_PAGE / 1e6:.0f}; report fewer runs at once "
            "or fewer pictures (--thumbnails)."
        )
    try:
        write_durably(Path(out), page)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}.") from error
    return Path(out)


def _marks(runs: Sequence[Results]) -> list[str]:
    """What is wrong with some runs, or not whole, and what keeps their figures apart."""
    found = {
        "partial run": any(run.partial for run in runs),
        "rounded, no evidence": any(run.rounded for run in runs),
        "a subset": any(_subset(run) for run in runs),
        "runs of several norms or units": len(list(alike(runs))) > 1,
    }
    return [mark for mark, holds in found.items() if holds]


def _claims(runs: Sequence[Results]) -> list[dict[str, Any]]:
    """What each kind of certificate says, once for all runs that say the same; and what these were made on."""
    found: dict[str, dict[str, Any]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        text = statement(run.header, set_risk(run)) if isinstance(run, Run) else IMPORTED
        claim = found.setdefault(text, {"title": _kind(run), "marks": [], "text": text, "runs": {}})
        claim["marks"] += [mark for mark in _marks([run]) if mark not in claim["marks"]]
        claim["runs"].setdefault(provenance(run), []).append(label)
    return list(found.values())


def _kind(run: Results) -> str:
    if not isinstance(run, Run):
        return "Imported results"
    sigma = "a sigma for each input" if run.header.sigma is None else "one sigma for all inputs"
    sigma = rule_text(run) or sigma
    return f"Level {run.level}, {vote_of(run)} vote, {sigma}"


def _subset(run: Results) -> bool:
    return isinstance(run, Run) and run.header.subset.size < run.header.data.length


def _headlines(runs: Sequence[Results]) -> list[Table]:
    """Accuracies of the runs that have labels, those of one norm and unit together, then what every run cost."""
    tables = []
    for same in alike(runs):
        with_labels = [run for run in same if labelled([run])]
        if with_labels:
            tables += accuracy_tables(with_labels, radii_for(with_labels))
    return tables + noise_tables(runs)


def _figures(runs: Sequence[Results], data: Sequence[Dataset | None]) -> Iterator[dict[str, Any]]:
    """Every figure that these runs have, norm by norm, then images of a run that chose sigma for each."""
    norms: list[str] = []
    for same in alike(runs):
        norms.append(same[0].header.norm)
        number = norms.count(norms[-1])
        for name, picture in FIGURES.items():
            if picture.applies(same):
                key = "-".join([norms[-1], name, *([str(number)] if number > 1 else [])])
                for title, some in picture.panels(same).items():
                    yield _figure(key + title.replace("level ", "-").replace(" ", "-"), picture, some, title)
    for run, dataset in zip(runs, data, strict=True):
        if isinstance(run, Run) and own_sigma([run]) and dataset is not None and is_images(dataset):
            yield _photo(run, dataset)
            return


def _photo(run: Run, dataset: Dataset) -> dict[str, Any]:
    """The first figure of images that a run has."""
    name, photo = next((name, photo) for name, photo in PHOTOS.items() if photo.applies(run))
    return {
        "id": name,
        "title": photo.title,
        "photos": True,
        "svg": _base64(svg_text(photo.draw(run, dataset))),
        "text": photo.text(run, dataset),
        "table": photo.table(run, dataset),
        "curves": None,
    }


def _figure(key: str, picture: Picture, runs: Sequence[Results], panel: str) -> dict[str, Any]:
    """A figure, or one panel of it where it has several."""
    figure = picture.draw(runs)
    svg = _base64(svg_text(figure))  # its layout is known after it was drawn
    return {
        "id": key,
        "title": f"{picture.title}, {panel}" if panel else picture.title,
        "photos": False,
        "runs": runs,
        "svg": svg,
        "text": picture.text(runs),
        "table": picture.table(runs),
        "curves": _curves(key, figure, runs) if picture is FIGURES["certified_accuracy"] else None,
    }


def _curves(key: str, figure: Figure, runs: Sequence[Results]) -> dict[str, Any]:
    """The curves in per cent rounded down, and where their axes lie in the picture."""
    (axes,) = figure.axes
    place = axes.get_position()
    radii, drawn, best = curves(runs)
    return {
        "id": key,
        "box": [round(value, 5) for value in (place.x0, 1.0 - place.y1, place.x1, 1.0 - place.y0)],
        "axis": axes.get_xlabel(),
        "x": [float(floor_text(x, 4)) for x in radii],
        "lines": [
            {"label": label, "y": [float(floor_text(round(y, 9), 1)) for y in values]}
            for label, values in [*([] if best is None else [best]), *drawn]
        ],
    }


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _pictures_note(pictures: Pictures) -> str:
    if not pictures.png:
        return "No pictures: they need the runs' data set of images."
    text = f"{pictures.chosen} inputs have pictures, evenly spread"
    if pictures.chosen < pictures.wanted:
        text += f" (of {pictures.wanted} wanted: a page has at most {LARGEST_PAGE / 1e6:.0f} MB)"
    return f"{text}. The noisy one is a fresh copy at the row's sigma, clipped to [0, 1]; it is none of those counted."


def _limits(runs: Sequence[Results]) -> list[dict[str, str]]:
    """What is not claimed, each sentence once; with the runs it is about where it is not about all."""
    found: dict[str, list[str]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        for text in limits(run) if isinstance(run, Run) else [IMPORTED]:
            found.setdefault(text, []).append(label)
    return [{"text": text, "runs": "" if len(who) == len(runs) else ", ".join(who)} for text, who in found.items()]
