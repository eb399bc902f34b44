"""Images beside noisy copies of themselves, each at its own sigma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import ABSTAIN
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.noise import FloatBlock
from ddsmoothing.plots.style import canvas, styled
from ddsmoothing.runs import ResultRow, Run
from ddsmoothing.streams import Stream
from ddsmoothing.tables import Table

SHOWN: Final = 6
COPIES: Final = 2


def _rows(run: Run, data: Dataset, ids: Sequence[int] | None) -> list[ResultRow]:
    """The rows to show: those asked for, else some from the smallest sigma to the largest, certified ones first."""
    if data.fingerprint() != run.header.data.model_dump():
        raise InputError(f"this is not the data set of {run.path}: expected {run.header.data.model_dump()}.")
    if len(data.x.shape) != 4 or data.x.shape[1] not in (1, 3):
        raise InputError(f"inputs of shape {data.x.shape[1:]} are no images, expected (1, H, W) or (3, H, W).")
    if ids is not None:
        known = {row.id: row for row in run.rows}
        missing = [i for i in ids if i not in known]
        if missing:
            raise InputError(f"input {missing[0]} is not in {run.path}.")
        return [known[i] for i in ids]
    certified = [row for row in run.rows if row.prediction != ABSTAIN] or list(run.rows)
    certified.sort(key=lambda row: (row.sigma, row.id))
    places = np.unique(np.linspace(0, len(certified) - 1, min(SHOWN, len(certified))).round().astype(int))
    return [certified[place] for place in places]


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
        data: the run's data set.   ids: of the images; default some from the smallest sigma to the largest.
    Raises: InputError for another data set, inputs that are no images, or an id that is not in the run.
    """
    rows = _rows(run, data, ids)
    figure, panels = canvas(1.6 * (1 + COPIES), 1.8 * len(rows), len(rows), 1 + COPIES)
    for index, row in enumerate(rows):
        x = data[row.id][0].numpy().astype(np.float64)
        captions = [f"input {row.id}: {_answer(row)}", f"sigma {row.sigma:.3g}", f"radius {floor_text(row.radius, 3)}"]
        pictures = [x, *noisy_copies(run, row, x, COPIES)]
        for axes, picture, caption in zip(panels[index * (1 + COPIES) :], pictures, captions, strict=False):
            _show(axes, picture, caption)
    return figure


def _answer(row: ResultRow) -> str:
    answer = "abstained" if row.prediction == ABSTAIN else f"class {row.prediction}"
    return answer if row.label in (None, row.prediction) else f"{answer}, label {row.label}"


def _show(axes: Axes, picture: NDArray[np.float64], caption: str) -> None:
    shown = picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xlabel(caption, fontsize=8)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def images_text(run: Run, data: Dataset, ids: Sequence[int] | None = None) -> str:
    """Alternative text: each image's sigma and radius."""
    parts = [f"Images, each beside {COPIES} noisy copies at its own sigma."]
    for row in _rows(run, data, ids):
        parts.append(f"Input {row.id}: {_answer(row)}, sigma {row.sigma:.3g}, radius {floor_text(row.radius, 3)}.")
    return " ".join(parts)


def images_table(run: Run, data: Dataset, ids: Sequence[int] | None = None) -> Table:
    """Sigma and radius of the images shown."""
    return Table(
        title="Images shown",
        columns=("input", "answer", "sigma", "radius"),
        rows=tuple(
            (str(row.id), _answer(row), f"{row.sigma:.4g}", floor_text(row.radius, 3)) for row in _rows(run, data, ids)
        ),
    )
