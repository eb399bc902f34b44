"""Small pictures of inputs, clean and with noise of their own sigma, as PNG. It knows no pages."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import prepare
from ddsmoothing.plots.images import noisy_copies
from ddsmoothing.runs import ResultRow, Results, Run

INPUTS: Final = 500  # that get pictures
LARGEST_SIDE: Final = 64  # pixels; of a larger image every so many-th is shown, so that noise keeps its strength
LARGEST_TEXT: Final = 14_000_000  # characters of all pictures together
_READ: Final = 64  # inputs at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures of some inputs of runs.

    Attributes:
        png: base64.   clean, noisy: for each run, input id -> place in ``png``.
        chosen: how many inputs have pictures.   wanted: how many were asked for, or are there.
    """

    png: list[str]
    clean: list[dict[int, int]]
    noisy: list[dict[int, int]]
    chosen: int
    wanted: int


def datasets_of(runs: Sequence[Results], data: Sequence[Dataset]) -> list[Dataset | None]:
    """The data set that each run was made with, None where it is not among these.

    Raises: InputError for a data set of none of the runs.
    """
    fingerprints = [dataset.fingerprint() for dataset in data]
    known = [run.header.data.model_dump() if isinstance(run, Run) else None for run in runs]
    for dataset, fingerprint in zip(data, fingerprints, strict=True):
        if fingerprint not in known:
            raise InputError(
                f"the data set {dataset.name!r} ({len(dataset)} inputs) is that of none of these runs; give theirs, "
                "or no pictures (--thumbnails none)."
            )
    return [data[fingerprints.index(one)] if one in fingerprints else None for one in known]


def is_images(dataset: Dataset) -> bool:
    """Whether inputs are ``(1, H, W)`` or ``(3, H, W)``."""
    return len(dataset.x.shape) == 4 and dataset.x.shape[1] in (1, 3)


def pictures_of(
    runs: Sequence[Results],
    data: Sequence[Dataset | None],
    count: int = INPUTS,
    progress: Callable[[int], None] | None = None,
) -> Pictures:
    """Pictures of at most ``count`` inputs of each data set, evenly spread; fewer where the page would grow too large.

    Args:
        data: of each run, None where it is not there: such a run gets no pictures, nor do inputs that are no images.
        progress: called with the number of pictures made.
    Raises: InputError for an input that is not the one certified.
    """
    found = Pictures(png=[], clean=[{} for _ in runs], noisy=[{} for _ in runs], chosen=0, wanted=0)
    left, chosen, wanted = LARGEST_TEXT, 0, 0
    for dataset in {id(one): one for one in data if one is not None and is_images(one)}.values():
        group = {i: run for i, run in enumerate(runs) if data[i] is dataset}
        ids = sorted({row.id for run in group.values() for row in run.rows})
        size = (1 + len(group)) * largest_text(dataset.x.shape[1:])
        fitting = min(count, len(ids), left // size)
        part = [ids[place] for place in np.unique(np.linspace(0, len(ids) - 1, fitting).round().astype(int))]
        for start in range(0, len(part), _READ):
            _add(found, group, dataset, part[start : start + _READ], progress)
        left -= size * len(part)
        chosen, wanted = chosen + len(part), wanted + min(count, len(ids))
    return Pictures(png=found.png, clean=found.clean, noisy=found.noisy, chosen=chosen, wanted=wanted)


def _add(
    found: Pictures,
    group: dict[int, Results],
    dataset: Dataset,
    ids: list[int],
    progress: Callable[[int], None] | None,
) -> None:
    if ids[-1] >= len(dataset):
        raise InputError(f"input {ids[-1]} of the runs is not in their data set of {len(dataset)} inputs.")
    x = dataset[ids][0]
    images = x.numpy().astype(np.float64)
    clean = {key: _keep(found, image) for key, image in zip(ids, images, strict=True)}
    for i, run in group.items():
        assert isinstance(run, Run)
        header = run.header
        rows = {row.id: row for row in run.rows}
        hashes = prepare(x, ids, None, header.norm if header.snap else None, header.levels, True).sha256
        for key, image, digest in zip(ids, images, hashes, strict=True):
            if (row := rows.get(key)) is None:
                continue
            _check(row, digest, run)
            found.clean[i][key] = clean[key]
            found.noisy[i][key] = _keep(found, noisy_copies(run, row, image, 1)[0])
            if progress is not None:
                progress(1)


def _check(row: ResultRow, digest: str, run: Run) -> None:
    if row.input_sha256 != digest:
        raise InputError(f"input {row.id} of the data set is not the one that {run.path} certified.")


def _keep(found: Pictures, image: NDArray[np.float64]) -> int:
    found.png.append(base64.b64encode(png_of(image)).decode())
    return len(found.png) - 1


def png_of(image: NDArray[np.float64]) -> bytes:
    """An image ``(C, H, W)`` in [0, 1], C = 1 or 3, at most LARGEST_SIDE pixels each way."""
    step = _step(image.shape)
    pixels = np.rint(np.clip(image[:, ::step, ::step], 0.0, 1.0) * 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(file, "PNG")
    return file.getvalue()


def _step(shape: tuple[int, ...]) -> int:
    return -(-max(shape[1:]) // LARGEST_SIDE)


def largest_text(shape: tuple[int, ...]) -> int:
    """Characters that no picture of this shape exceeds: its pixels, a byte a row, PNG's frame, in base64."""
    step = _step(shape)
    height, width = (-(-side // step) for side in shape[1:])
    return 4 * (height * (width * shape[0] + 1) + 500) // 3
