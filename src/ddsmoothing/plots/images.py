"""Images beside noisy copies of themselves, each at its own sigma; those with the smallest and the largest sigma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.certificate import certificate_for
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.noise import FloatBlock
from ddsmoothing.plots.style import canvas, literal, styled
from ddsmoothing.runs import ResultRow, Run
from ddsmoothing.streams import Stream
from ddsmoothing.tables import Table
from ddsmoothing.tables.facts import abstained, class_text, units_of

SHOWN: Final = 6
COPIES: Final = 2
CAPTION: Final = 25  # characters a line
ENDS: Final = ("smallest sigma", "largest sigma")


def _check(run: Run, data: Dataset) -> None:
    if data.fingerprint() != run.header.data.model_dump():
        raise InputError(f"this is not the data set of {run.path}: expected {run.header.data.model_dump()}.")
    if len(data.x.shape) != 4 or data.x.shape[1] not in (1, 3):
        raise InputError(f"inputs of shape {data.x.shape[1:]} are no images, expected (1, H, W) or (3, H, W).")


def _by_sigma(run: Run) -> list[ResultRow]:
    """Rows from the smallest sigma to the largest: those with a certificate, or all if none has one."""
    gone = abstained(run)
    rows = [row for row, without in zip(run.rows, gone, strict=True) if not without] or list(run.rows)
    return sorted(rows, key=lambda row: (row.sigma, row.id))


def _rows(run: Run, data: Dataset, ids: Sequence[int] | None) -> list[ResultRow]:
    """The rows to show: those asked for, else some from the smallest sigma to the largest."""
    _check(run, data)
    if ids is not None:
        known = {row.id: row for row in run.rows}
        missing = [i for i in ids if i not in known]
        if missing:
            raise InputError(f"input {missing[0]} is not in {run.path}.")
        return [known[i] for i in ids]
    rows = _by_sigma(run)
    places = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))
    return [rows[place] for place in places]


def noisy_copies(run: Run, row: ResultRow, x: NDArray[np.float64], copies: int) -> NDArray[np.float64]:
    """``(copies, ...)`` of one input ``(...)`` at the row's sigma, clipped to [0, 1] to be shown; not those counted."""
    noise = certificate_for(run.header.norm).noise
    drawn = np.empty((copies, x.size))
    FloatBlock(noise, noise.scale(row.sigma), (run.header.seed, row.id, Stream.PREDICT, 0)).fill(drawn)
    return np.clip(x + drawn.reshape(copies, *x.shape), 0.0, 1.0)


@styled
def images_figure(run: Run, data: Dataset, ids: Sequence[int] | None = None) -> Figure:
    """One row an image: clean, then noisy copies at its own sigma, with sigma and radius below.

    Args:
        run: With a sigma for each input, or one.
        data: The run's data set.
        ids: Of the images; default some from the smallest sigma to the largest.
    Raises:
        InputError: Another data set, inputs that are no images, or an id that is not in the run.
    """
    rows = _rows(run, data, ids)
    figure, panels = canvas(1.75 * (1 + COPIES), 2.05 * len(rows), len(rows), 1 + COPIES)
    for index, row in enumerate(rows):
        x = _image(data, row)
        noise = f"noise at sigma {row.sigma:.3g}"
        captions = [
            f"input {row.id}: {_answer(run, data, row)}",
            noise,
            f"{noise},\nradius {floor_text(row.radius, 3)}",
        ]
        pictures = [x, *noisy_copies(run, row, x, COPIES)]
        for axes, picture, caption in zip(panels[index * (1 + COPIES) :], pictures, captions, strict=False):
            _show(axes, picture, caption)
    return figure


def extremes(run: Run, data: Dataset) -> tuple[list[ResultRow], list[ResultRow]]:
    """The rows with the smallest and those with the largest sigma, each from small to large; no row is in both.

    Raises:
        InputError: Another data set, inputs that are no images.
    """
    _check(run, data)
    rows = _by_sigma(run)
    count = min(SHOWN, len(rows) // 2)
    return rows[:count], rows[len(rows) - count :]


def has_extremes(run: Run) -> bool:
    """Whether inputs have sigmas of their own that differ."""
    return run.header.sigma is None and len(set(run.sigma.tolist())) > 1


@styled
def extremes_figure(run: Run, data: Dataset) -> Figure:
    """The images with the smallest sigma and those with the largest, each above a copy with noise of that sigma.

    Raises:
        InputError: Another data set, inputs that are no images.
    """
    ends = extremes(run, data)
    columns = max(1, len(ends[0]))
    figure, panels = canvas(max(3.0, 1.4 * columns + 0.3), 6.6, 4, columns)
    for at, (rows, name) in enumerate(zip(ends, ENDS, strict=True)):
        clean, noisy = (panels[(2 * at + k) * columns : (2 * at + k + 1) * columns] for k in range(2))
        for row, above, below in zip(rows, clean, noisy, strict=True):
            x = _image(data, row)
            _show(above, x, f"{row.id}: {_answer(run, data, row)}")
            _show(below, noisy_copies(run, row, x, 1)[0], f"sigma {row.sigma:.3g}\nradius {floor_text(row.radius, 3)}")
        clean[0].set_ylabel(name)
        noisy[0].set_ylabel("its noise")
    return figure


def _image(data: Dataset, row: ResultRow) -> NDArray[np.float64]:
    return data[row.id][0].numpy().astype(np.float64)


def _answer(run: Run, data: Dataset, row: ResultRow) -> str:
    answer = "abstained" if row.prediction < 0 else f"class {class_text(run, row.prediction, data)}"
    return answer if row.label in (None, row.prediction) else f"{answer}, label {class_text(run, row.label, data)}"


def _show(axes: Axes, picture: NDArray[np.float64], caption: str) -> None:
    shown = picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xlabel(literal(caption, CAPTION), fontsize=7.5)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def images_text(run: Run, data: Dataset, ids: Sequence[int] | None = None) -> str:
    """Alternative text: each image's sigma and radius."""
    return _text(f"Images, each beside {COPIES} noisy copies at its own sigma.", run, data, _rows(run, data, ids))


def images_table(run: Run, data: Dataset, ids: Sequence[int] | None = None) -> Table:
    """Sigma and radius of the images shown."""
    return _table(run, data, _rows(run, data, ids))


def extremes_text(run: Run, data: Dataset) -> str:
    """Alternative text: which images have the smallest and the largest sigma."""
    small, large = extremes(run, data)
    return _text(f"The {len(small)} images with the smallest sigma.", run, data, small) + _text(
        f" The {len(large)} with the largest.", run, data, large
    )


def extremes_table(run: Run, data: Dataset) -> Table:
    """Sigma and radius of these images."""
    small, large = extremes(run, data)
    return _table(run, data, [*small, *large])


def _text(first: str, run: Run, data: Dataset, rows: Sequence[ResultRow]) -> str:
    parts = [
        f"Input {row.id}: {_answer(run, data, row)}, sigma {row.sigma:.3g}, radius {floor_text(row.radius, 3)}."
        for row in rows
    ]
    return " ".join([first, *parts])


def _table(run: Run, data: Dataset, rows: Sequence[ResultRow]) -> Table:
    return Table(
        title="Images shown",
        columns=("input", "answer", "sigma", "radius"),
        rows=tuple(
            (str(row.id), _answer(run, data, row), f"{row.sigma:.4g}", floor_text(row.radius, 3)) for row in rows
        ),
        notes=(f"Sigma and radius in {units_of(run)}.",),
    )
