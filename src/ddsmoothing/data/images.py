"""Folders of images, one folder a class, read when they are asked for.

Pixels stay 8-bit integers, also after resizing and cropping, so that such inputs get exact noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddsmoothing.data.dataset import Dataset, MissingError
from ddsmoothing.errors import DataError

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"))
PLACES: Final = {"test": ("val", "test", "."), "train": ("train",)}
RESIZED, CROPPED = 256, 224  # ImageNet: the shorter side, then the square in the middle


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images as an array ``(B, C, H, W)`` of uint8 that is read row by row.

    Attributes:
        paths: of the images.   size: ``(H, W)`` of each.   grey: one channel instead of three.
        crop: resize the shorter side to RESIZED pixels and take the CROPPED square in the middle.
    """

    paths: tuple[Path, ...]
    size: tuple[int, int]
    grey: bool = False
    crop: bool = False

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, C, H, W)``."""
        return len(self.paths), 1 if self.grey else 3, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self._read(self.paths[int(rows)])
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, row in enumerate(rows):
            out[i] = self._read(self.paths[row])
        return out

    def _read(self, path: Path) -> NDArray[np.uint8]:
        image = read_image(path)
        if self.crop:
            image = centre(image)
        if (image.height, image.width) != self.size:
            raise DataError(
                f"{path} has {image.height}x{image.width} pixels, expected {self.size[0]}x{self.size[1]} as the first "
                "image; resize them, or use imagenet:DIR, which resizes and crops."
            )
        pixels = np.asarray(image.convert("L" if self.grey else "RGB"))
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)


def read_image(path: Path) -> Image.Image:
    """An image of 8 bits a channel."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # what a damaged image raises depends on its kind
        raise DataError(f"{path} is not a readable image: {error}.") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a pixel; save it with 8, or give the numbers as an npz file.")
    return image


def centre(image: Image.Image) -> Image.Image:
    """The middle of the image with its shorter side at RESIZED pixels, as evaluation on ImageNet has it."""
    short = min(image.size)
    # the longer side is rounded down and the corner to the nearest even: the field's transforms to the pixel
    width, height = (RESIZED if side == short else int(RESIZED * side / short) for side in image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - CROPPED) / 2), round((height - CROPPED) / 2)
    return image.crop((left, top, left + CROPPED, top + CROPPED))


def image_folder(folder: Path, split: str, *, name: str, crop: bool) -> Dataset:
    """Images in class folders; classes are numbered in the order of their folders' names.

    Args:
        folder: holds the class folders, or folders ``val`` (or ``test``) and ``train`` that do.
    Raises: DataError.
    """
    place = _place(folder, split)
    classes = _classes(place)
    found = [(path, label) for label, inner in enumerate(classes) for path in _images(inner)]
    if not found:
        raise DataError(f"no images in the class folders of {place}; expected {place}/CLASS/IMAGE.jpg (or .png, ..).")
    first = read_image(found[0][0])
    return Dataset(
        name=name,
        split=split,
        x=Images(
            paths=tuple(path for path, _ in found),
            size=(CROPPED, CROPPED) if crop else (first.height, first.width),
            grey=not crop and first.mode in ("1", "L"),
            crop=crop,
        ),
        y=np.array([label for _, label in found], np.int64),
        prepared=f"shorter side {RESIZED}, centre {CROPPED}, " if crop else "",
    )


def _place(folder: Path, split: str) -> Path:
    """Where the class folders of a split are."""
    places = [folder / place for place in PLACES[split]]
    for place in places:
        parent = place == folder and any((folder / name).is_dir() for name in ("train", "val", "test"))
        if place.is_dir() and not parent and _classes(place):
            break
    else:
        raise MissingError(f"no class folders for the split {split} in {' or '.join(map(str, places))}.")
    other = folder / "train"
    if place.name in ("val", "test") and other.is_dir():
        names = [[inner.name for inner in _classes(p)] for p in (place, other)]
        if names[1] and names[0] != names[1]:
            raise DataError(f"{place} and {other} hold different class folders, so their labels would not agree.")
    return place


def _classes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
