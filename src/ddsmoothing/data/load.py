"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from ddsmoothing.data.arrays import idx_folder, read_npz
from ddsmoothing.data.cifar import cifar10
from ddsmoothing.data.columns import csv_parts, read_csv
from ddsmoothing.data.dataset import Dataset, MissingError
from ddsmoothing.data.download import SOURCES, fetch
from ddsmoothing.data.folders import image_folder
from ddsmoothing.errors import InputError, unknown

SHIPPED: Final[dict[str, str]] = {"fashion-mnist-sample": "fashion-mnist-sample.npz"}
SPLITS: Final = ("test", "train")
IMAGENET_DIR: Final = "IMAGENET_DIR"  # names the folder of ImageNet where the data set's name does not
CLOTHES: Final = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FOLDERS: Final[dict[str, Callable[[Path, str], Dataset]]] = {
    "cifar10": cifar10,
    "fashion-mnist": partial(idx_folder, name="fashion-mnist", classes=CLOTHES),
    "folder": partial(image_folder, name="folder", crop=False),
    "imagenet": partial(image_folder, name="imagenet", crop=True),
    "mnist": partial(idx_folder, name="mnist"),
}


def load_data(
    name: str, *, split: str = "test", labels: bool = True, download: bool = False, any_range: bool = False
) -> Dataset:
    """A data set by name.

    Args:
        name: ``fashion-mnist-sample`` (1,000 test images, shipped); ``FILE.npz`` with x (uint8, uint16, or float in
            [0, 1]) and y, and classes if it has their names; ``FILE.csv:LABEL``, a table of numbers and its column of
            labels; ``mnist:DIR`` or ``fashion-mnist:DIR``, a folder of idx files, gzipped or not; ``cifar10:DIR``, its
            binary or Python files; ``imagenet:DIR`` or ``folder:DIR``, folders of images, one a class, read when they
            are asked for. Those of ImageNet are resized and cropped; of ``imagenet`` alone IMAGENET_DIR is the folder.
        split: ``test`` or ``train``, where the source has both.
        labels: False accepts a file without labels.
        download: Fetch mnist, fashion-mnist or cifar10 into DIR if it is not there.
        any_range: Take floats of a file that lie outside [0, 1], such as standardised columns; sigma and radii are then
            in their units.
    Raises:
        DataError, InputError.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    kind, _, place = name.partition(":")
    if name in SHIPPED:
        with as_file(files("ddsmoothing") / "assets" / SHIPPED[name]) as path:
            return read_npz(path, name, "test", labels, any_range)  # whichever is asked for
    if name == "imagenet":
        place = os.environ.get(IMAGENET_DIR, "")
        if not place:
            raise InputError(f"expected imagenet:DIR, or the folder of ImageNet in the environment as {IMAGENET_DIR}.")
    if place and kind in FOLDERS:
        return _folder(kind, Path(place), split, download)
    if Path(name).suffix == ".npz":
        return read_npz(Path(name), Path(name).name, split, labels, any_range)
    if (table := csv_parts(name)) is not None:
        return read_csv(*table, split, labels, any_range)
    known = [*SHIPPED, *(f"{key}:DIR" for key in FOLDERS), "FILE.npz", "FILE.csv:LABEL"]
    raise InputError(unknown("data set", name, known))


def _folder(kind: str, folder: Path, split: str, download: bool) -> Dataset:
    try:
        return FOLDERS[kind](folder, split)
    except MissingError as error:
        if kind not in SOURCES:
            raise
        if not download:
            raise MissingError(f"{error} Put it there, from {SOURCES[kind].url}, or add --download.") from None
    fetch(kind, folder)
    return FOLDERS[kind](folder, split)
