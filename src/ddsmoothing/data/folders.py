"""Folders of images, one folder a class, read when they are asked for. Which files and folders count is said here.

Pixels stay integers, also after resizing and cropping, so that such inputs get exact noise. Nothing is left out without
a word: what is no image or no class is named in a warning, and what would shift labels is an error.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddsmoothing.data.dataset import Dataset, MissingError
from ddsmoothing.data.images import Form, form_of, opened, pixels_of, rgb
from ddsmoothing.errors import DataError, DdsmoothingWarning
from ddsmoothing.files import file_name

SUFFIXES: Final = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff")
)
SPLITS: Final = {  # names of the folders of a split, in any case; "set" or "images" may follow, as in test_set
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "val": ("val", "valid", "validation", "dev"),
}
ENDING: Final = r"([ _-]?(set|data|images|split))?"
LITTER: Final = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information"))  # of operating systems
LAYOUT: Final = (
    "expected DIR/test/CLASS/IMAGE and DIR/train/CLASS/IMAGE (val for test, in any case), or DIR/CLASS/IMAGE"
)
RESIZED, CROPPED = 256, 224  # ImageNet: the shorter side, then the square in the middle
NAMED: Final = 10  # files in one message, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images as an array ``(B, C, H, W)`` that is read row by row.

    Attributes:
        paths: of the images.   size: ``(H, W)`` of each.   grey: one channel instead of three.
        levels: 255 of uint8, 65535 of uint16.
        crop: resize the shorter side to RESIZED pixels and take the CROPPED square in the middle.
    """

    paths: tuple[Path, ...]
    size: tuple[int, int]
    grey: bool = False
    levels: int = 255
    crop: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return np.dtype(np.uint8 if self.levels == 255 else np.uint16)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, C, H, W)``."""
        return len(self.paths), 1 if self.grey else 3, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self._read(self.paths[int(rows)])
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows):
            out[i] = self._read(self.paths[row])
        return out

    def _read(self, path: Path) -> NDArray[Any]:
        with opened(path) as (image, form):
            if self.crop:
                if form.levels != 255:
                    raise DataError("has 16 bits a pixel, which are not resized; save it with 8, or use folder:DIR.")
                return pixels_of(centre(image), False)
            if not self._takes(form):
                raise DataError("has changed since its data set was loaded; load it again.")
            return pixels_of(image, self.grey, self.levels)

    def _takes(self, form: Form) -> bool:
        fits = (form.height, form.width) == self.size and form.levels == self.levels
        return fits and (form.grey or not self.grey)


def centre(image: Image.Image) -> Image.Image:
    """The middle of the image with its shorter side at RESIZED pixels, as evaluation on ImageNet has it."""
    short = min(image.size)
    # the longer side is rounded down and the corner to the nearest even: the field's transforms to the pixel
    width, height = (RESIZED if side == short else int(RESIZED * side / short) for side in image.size)
    image = rgb(image).resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - CROPPED) / 2), round((height - CROPPED) / 2)
    return image.crop((left, top, left + CROPPED, top + CROPPED))


def image_folder(folder: Path, split: str, *, name: str, crop: bool) -> Dataset:
    """Images in class folders; classes are numbered in the order of their folders' names.

    Args:
        folder: Holds the class folders, or folders of the splits that do.
        split: ``test`` or ``train``.
        name: Of the data set.
        crop: Images of any size, resized and cropped in colour as for ImageNet. Their headers are read with them; those
            of others here.
    Raises:
        DataError: There is no such layout, a class without images, or an image that cannot be read or is of another
            size or depth.
    """
    try:
        place, classes, left_out = _place(folder, split, "val" if crop else "test")
        found: list[list[Path]] = []
        for inner in classes:
            images, others = _images(inner)
            found.append(images)
            left_out += others
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}: {error.filename}.") from error
    _check_classes(place, classes, found, left_out)
    _say(place, left_out)
    paths = [path for images in found for path in images]
    if crop:
        form_of(paths[0])
    return Dataset(
        name=name,
        split=split,
        x=Images(paths=tuple(paths), size=(CROPPED, CROPPED), crop=True) if crop else _alike(paths),
        y=np.repeat(np.arange(len(found)), [len(images) for images in found]),
        prepared=f"shorter side {RESIZED}, centre {CROPPED}, " if crop else "",
        classes=tuple(inner.name for inner in classes),
    )


def _alike(paths: list[Path]) -> Images:
    """Images of one size and depth; they are colour if one of them is, whichever comes first."""
    forms = [form_of(path) for path in paths]
    kinds = [(form.height, form.width, form.levels) for form in forms]
    if others := [path for path, kind in zip(paths, kinds, strict=True) if kind != kinds[0]]:
        raise DataError(
            f"{others[0]} has {_text(form_of(others[0]))}, expected {_text(forms[0])} as {paths[0]}; {len(others)} of "
            f"{len(paths)} images differ from it. Make them alike, or use imagenet:DIR, which resizes and crops."
        )
    size, levels = (forms[0].height, forms[0].width), forms[0].levels
    return Images(paths=tuple(paths), size=size, grey=all(form.grey for form in forms), levels=levels)


def _text(form: Form) -> str:
    return f"{form.height}x{form.width} pixels of {8 if form.levels == 255 else 16} bits"


# which folders and files count


def _place(folder: Path, split: str, first: str) -> tuple[Path, list[Path], list[Path]]:
    """Where the class folders of a split are, these, and what lies beside them and is left out."""
    if not folder.is_dir():
        raise MissingError(f"no class folders for the split {split} in {folder}, which is no folder; {LAYOUT}.")
    inner, others = _folders(folder)
    by_kind = _splits(inner)
    if not by_kind:
        if split != "test" or not inner:
            raise MissingError(f"no class folders for the split {split} in {folder}; {LAYOUT}.")
        return folder, inner, others
    kinds = (first, "val" if first == "test" else "test") if split == "test" else ("train",)
    for kind in kinds:
        places = by_kind.get(kind, [])
        if len(places) > 1:
            raise DataError(
                f"{folder} holds {' and '.join(p.name for p in places)} for one split, expected one of them."
            )
        if places and (classes := _folders(places[0])[0]):
            _check_same(places[0], classes, [] if kind == "train" else by_kind["train"])
            known = [p for found in by_kind.values() for p in found]
            beside = [path for path in (*inner, *others) if path not in known]
            return places[0], classes, beside + _folders(places[0])[1]
    raise MissingError(
        f"no class folders for the split {split} in {folder}, which holds {_names([p.name for p in inner])}; {LAYOUT}."
    )


def _splits(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Folders of splits, by kind; a class may be called train, too: then it holds images, and others are no splits."""
    named = {
        path: kind
        for path in folders
        for kind, words in SPLITS.items()
        if re.fullmatch(f"({'|'.join(words)}){ENDING}", path.name.casefold())
    }
    if not any(_folders(path)[0] for path in named) and len(named) < len(folders):
        return {}
    return {kind: [path for path in named if named[path] == kind] for kind in SPLITS} if named else {}


def _folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders in a folder that may be classes or splits, by name; and everything else in it."""
    inner: list[Path] = []
    others: list[Path] = []
    for path, is_folder, _ in _entries(folder):
        (inner if is_folder else others).append(path)
    return inner, others


def _entries(folder: Path) -> list[tuple[Path, bool, bool]]:
    """What lies in a folder, by name, and whether it is a folder or a file that counts; links are followed."""
    found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in found:
        if entry.is_symlink() and not Path(entry).exists():
            raise DataError(f"{entry.path} is a link to nothing; remove it.")
    counts = [not _is_litter(entry.name) for entry in found]
    return [
        (folder / entry.name, one and entry.is_dir(), one and entry.is_file())
        for entry, one in zip(found, counts, strict=True)
    ]


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a class, by name, and what else is there.

    They lie in the class folder itself, or in one folder in it. Several folders of images may be classes of their own.
    """
    images: list[Path] = []
    others: list[Path] = []
    for path, is_file in _walk(folder, ()):
        (images if is_file and path.suffix.lower() in SUFFIXES else others).append(path)
    places = {path.relative_to(folder).parts[:-1] for path in images}
    if () not in places and len(below := {place[0] for place in places}) > 1:
        raise DataError(
            f"{folder} holds no images but folders of images ({_names(sorted(below))}), so it is no class; {LAYOUT}. "
            f"If these are the classes, give {folder} itself."
        )
    return images, others


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, bool]]:
    """All that lies below a folder, by name, but for folders that are walked through; whether it is a file."""
    here = folder.stat().st_dev, folder.stat().st_ino
    if here in above:
        raise DataError(f"{folder} is a link to a folder that it lies in, expected images; remove it.")
    for path, is_folder, is_file in _entries(folder):
        if is_folder:
            yield from _walk(path, (*above, here))
        else:
            yield path, is_file


def _check_same(place: Path, classes: list[Path], others: list[Path]) -> None:
    for other in others:
        names = [[inner.name for inner in part] for part in (classes, _folders(other)[0])]
        if names[1] and names[0] != names[1]:
            raise DataError(f"{place} and {other} hold different class folders, so their labels would not agree.")


def _check_classes(place: Path, classes: list[Path], found: list[list[Path]], left_out: list[Path]) -> None:
    if not any(found):
        raise DataError(f"no images in the class folders of {place}; expected {place}/CLASS/IMAGE.jpg (or .png, ..).")
    empty = [inner.name for inner, images in zip(classes, found, strict=True) if not images]
    if empty:
        inside = [path for path in left_out if any(path.is_relative_to(place / name) for name in empty)]
        kinds = sorted({path.suffix for path in inside} - {""})
        what = f" (files {', '.join(kinds)} are not read)" if kinds else ""
        raise DataError(
            f"{place} has class folders without images{what}: {_names(empty)}. They would shift the labels of others: "
            "remove them, begin their names with a dot, or fill them."
        )


def _say(place: Path, left_out: list[Path]) -> None:
    if left_out:
        top = place if all(path.is_relative_to(place) for path in left_out) else place.parent
        names = [file_name(path.relative_to(top)) for path in left_out]
        warnings.warn(
            f"{file_name(top)}: left out, as no images in class folders: {_names(names)}.",
            DdsmoothingWarning,
            stacklevel=2,
        )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
