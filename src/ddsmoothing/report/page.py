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
from ddsmoothing.plots import FIGURES, Picture, images_figure, images_table, images_text, svg_text
from ddsmoothing.report.claims import SetRisk, limits, radii_for, set_risk, statement
from ddsmoothing.report.render import render_page
from ddsmoothing.report.rows import COLUMNS, rows_data
from ddsmoothing.report.thumbnails import INPUTS, Pictures, datasets_of, is_images, pictures_of
from ddsmoothing.runs import Imported, Results, Run
from ddsmoothing.tables import Table, accuracy_tables, labelled, labels_of, noise_tables, provenance

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
    progress: Progress | None = None,
) -> Path:
    """Write runs side by side as one HTML page that needs no network; the same runs give the same bytes.

    Args:
        data: data sets of the runs, for pictures.   thumbnails: at most so many inputs of each get pictures.
        progress: called with the number of pictures and figures made.
    Raises: RunError where the page would be too large or cannot be written; InputError for another data set.
    """
    datasets = datasets_of(runs, data)
    pictures = pictures_of(runs, datasets, thumbnails, progress)
    figures = []
    for figure in _figures(runs, datasets if thumbnails else [None] * len(runs)):
        figures.append(figure)
        if progress is not None:
            progress(1)
    page = render_page(
        "page.html.j2",
        names=", ".join(dict.fromkeys(printable(run.name) for run in runs)),
        version=version("ddsmoothing"),
        claims=_claims(runs),
        headlines=_headlines(runs),
        figures=figures,
        pictures_note=_pictures_note(pictures),
        row_columns=[(n, title) for n, title in COLUMNS.items() if pictures.png or n not in ("clean", "noisy")],
        limits=_limits(runs),
        facts=_facts(runs),
        data=rows_data(runs, pictures) | {"curves": [figure["curves"] for figure in figures if figure["curves"]]},
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


def _claims(runs: Sequence[Results]) -> list[dict[str, Any]]:
    """What each kind of certificate says, once for all runs that say the same."""
    found: dict[str, dict[str, Any]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        text = statement(run.header, set_risk(run)) if isinstance(run, Run) else IMPORTED
        claim = found.setdefault(text, {"title": f"Level {run.level}", "marks": [], "text": text, "runs": []})
        marks = (("partial run", run.partial), ("rounded, no evidence", run.rounded), ("a subset", _subset(run)))
        claim["marks"] += [mark for mark, holds in marks if holds and mark not in claim["marks"]]
        claim["runs"].append(f"{label}: {provenance(run)}")
    return list(found.values())


def _subset(run: Results) -> bool:
    return isinstance(run, Run) and run.header.subset.size < run.header.data.length


def _headlines(runs: Sequence[Results]) -> list[Table]:
    """Accuracies of the runs that have labels, norm by norm, then what every run cost."""
    tables = []
    for norm in sorted({run.header.norm for run in runs}):
        with_labels = [run for run in runs if run.header.norm == norm and labelled([run])]
        if with_labels:
            tables += accuracy_tables(with_labels, radii_for(with_labels))
    return tables + noise_tables(runs)


def _figures(runs: Sequence[Results], data: Sequence[Dataset | None]) -> Iterator[dict[str, Any]]:
    """Every figure that these runs have, norm by norm, then images of a run that chose sigma for each."""
    for norm in sorted({run.header.norm for run in runs}):
        alike = [run for run in runs if run.header.norm == norm]
        for name, picture in FIGURES.items():
            if picture.applies(alike):
                yield _figure(f"{norm}-{name}", picture, alike)
    for run, dataset in zip(runs, data, strict=True):
        if isinstance(run, Run) and run.header.sigma is None and dataset is not None and is_images(dataset):
            yield {
                "id": "images",
                "title": "Images at their own sigma",
                "photos": True,
                "svg": _base64(svg_text(images_figure(run, dataset))),
                "text": images_text(run, dataset),
                "table": images_table(run, dataset),
                "curves": None,
            }
            return


def _figure(key: str, picture: Picture, runs: Sequence[Results]) -> dict[str, Any]:
    figure = picture.draw(runs)
    return {
        "id": key,
        "title": picture.title,
        "photos": False,
        "svg": _base64(svg_text(figure)),
        "text": picture.text(runs),
        "table": picture.table(runs),
        "curves": _curves(key, figure) if picture is FIGURES["certified_accuracy"] else None,
    }


def _curves(key: str, figure: Any) -> dict[str, Any]:
    """The lines that were drawn, in per cent rounded down, and where their axes lie in the picture."""
    (axes,) = figure.axes
    place = axes.get_position()
    lines = axes.get_lines()
    return {
        "id": key,
        "box": [round(value, 5) for value in (place.x0, 1.0 - place.y1, place.x1, 1.0 - place.y0)],
        "axis": axes.get_xlabel(),
        "x": [float(floor_text(x, 4)) for x in lines[0].get_xdata()],
        "lines": [
            {
                "label": line.get_label().replace(r"\$", "$"),
                "y": [float(floor_text(round(y, 9), 1)) for y in line.get_ydata()],
            }
            for line in lines
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


def _facts(runs: Sequence[Results]) -> Table:
    """What defines each run, one column a run."""
    columns = [_facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return Table(
        title="Headers",
        columns=("", *labels_of(runs)),
        rows=tuple((name, *(printable(column.get(name, "-")) for column in columns)) for name in names),
    )


def _facts_of(run: Results) -> dict[str, str]:
    if isinstance(run, Imported):
        source = f"{run.header.source}, SHA-256 {run.header.sha256}"
        return {"folder": run.name, "created": run.header.created, "file": source}
    header, risk = run.header, set_risk(run)
    options = header.policy.model_dump(exclude_none=True)
    modes = [
        name for name in ("randomized", "label_aware", "channels_last", "compiled", "snap") if getattr(header, name)
    ]
    return {
        "folder": run.name,
        "created": header.created,
        "model": f"{header.model.name}, SHA-256 {header.model.sha256 or 'not known'}",
        "data": f"{header.data.name}, {header.data.split}, {header.data.length} inputs, SHA-256 of its first inputs "
        f"{header.data.sha256}",
        "inputs": provenance(run),
        "norm, level": f"{header.norm}, {header.level}",
        "sigma": f"{header.sigma_policy}, {header.sigma or _pairs(options)}",
        "grid": f"multiples of 1/{header.levels}",
        "sampler": f"{header.sampler}, {_pairs(header.sampler_options)}",
        "bound": header.bound,
        "alpha": _together(risk),
        "form": ", ".join([header.dtype, header.precision, header.device, f"{header.block_size} rows a pass", *modes]),
        "seed": str(header.seed),
        "software": _pairs(header.versions),
    }


def _together(risk: SetRisk | None) -> str:
    if risk is None:
        return "none of its own: all answers come from earlier regions"
    few = f"at most {risk.false} of {risk.certifications} certifications false with probability at least 1 - {risk.rho}"
    return f"{risk.alpha!r} for each certificate; {few}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
