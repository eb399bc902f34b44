"""One image in a file: what its header says, and its pixels as they are stored. It knows no folders and no data sets.

- Grey of 8 bits, also black and white or by a palette of greys, is ``(1, H, W)`` uint8; grey of 16 bits is uint16, on
  the grid X/65535.
- Colour of 8 bits a channel, also by palette, CMYK or YCbCr, is ``(3, H, W)`` uint8.
- Alpha is left off: colours stay as they are stored. Orientation marks and colour profiles are not applied.
- Anything else is refused, with what to do: more than 8 bits of a colour (a decoder would drop the lower ones), numbers
  that are no pixels, several pictures in one file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from ddsmoothing.errors import DataError

FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no others: one of those runs a program
GREY: Final = frozenset(("1", "L", "LA"))
PALETTES: Final = frozenset(("P", "PA"))
COLOUR: Final = frozenset((*PALETTES, "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
DEEP_GREY: Final = frozenset(("I", "I;16", "I;16B", "I;16L", "I;16N"))
BITS_PER_SAMPLE: Final = 258  # of a TIFF file
ADVICE: Final = "save it as grey or RGB with 8 bits a channel, or give the numbers as uint16 in an npz file"


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an image's header says.

    Attributes:
        height, width: in pixels.   grey: one channel, not three.   levels: 255, or 65535 of 16 bits.
    """

    height: int
    width: int
    grey: bool
    levels: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image's pixels.

    Attributes:
        pixels: ``(C, H, W)``, uint8 or uint16.   levels: what stands for 1: 255 or 65535.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    levels: int


def load_image(path: Path) -> Picture:
    """The pixels of an image file, the only way in which this package reads them; DataError where it cannot."""
    with opened(path) as (image, form):
        return Picture(pixels=pixels_of(image, form.grey, form.levels), levels=form.levels)


def form_of(path: Path) -> Form:
    """What the header says; the pixels are not decoded. DataError where it is no image that can be read."""
    with opened(path) as (_, form):
        return form


@contextmanager
def opened(path: Path) -> Iterator[tuple[Image.Image, Form]]:
    """An image file and its form, checked; whatever goes wrong inside becomes a DataError that names the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image, _checked(image)
    except Exception as error:  # what a damaged image raises depends on its kind
        reason = str(error) if isinstance(error, DataError) else f"is not a readable image: {error}."
        raise DataError(f"{path} {' '.join(reason.split())}") from error


def pixels_of(image: Image.Image, grey: bool, levels: int = 255) -> NDArray[Any]:
    """``(C, H, W)``, one channel or three; a grey image of 8 bits may be asked for as three equal channels."""
    if levels != 255:
        found = np.asarray(image).astype(np.int64)
        if found.min() < 0 or found.max() > levels:
            raise DataError(f"holds the number {found.max()}, above {levels}; {ADVICE}.")
        return found.astype(np.uint16)[None]
    if grey:
        return np.asarray((rgb(image) if image.mode in PALETTES else image).convert("L"))[None]
    return np.asarray(rgb(image)).transpose(2, 0, 1)


def rgb(image: Image.Image) -> Image.Image:
    """Colours as they are stored, without alpha."""
    return (image.convert("RGBA") if image.mode in PALETTES else image).convert("RGB")


def _checked(image: ImageFile) -> Form:
    """The form of an image of a kind that is taken, else DataError; the image is not decoded yet."""
    bits, grey = _bits(image), image.mode in GREY or (image.mode in PALETTES and _has_greys_only(image))
    several = getattr(image, "n_frames", 1) > 1 if image.format == "TIFF" else getattr(image, "is_animated", False)
    if several and image.format != "MPO":  # a photograph and its previews
        raise DataError("holds several pictures, expected one; save the one that is meant.")
    if bits == 16 and image.mode in DEEP_GREY:
        return Form(height=image.height, width=image.width, grey=True, levels=65535)
    if bits != 8 or not (grey or image.mode in COLOUR):
        raise DataError(f"has {bits} bits a channel (mode {image.mode}); {ADVICE}.")
    return Form(height=image.height, width=image.width, grey=grey, levels=255)


def _has_greys_only(image: ImageFile) -> bool:
    palette = image.palette
    if palette is None or (palette.rawmode or palette.mode) != "RGB":
        return False
    entries = np.frombuffer(bytes(palette.palette), np.uint8)
    return len(entries) % 3 == 0 and bool((entries.reshape(-1, 3) == entries[::3, None]).all())


def _bits(image: ImageFile) -> int:
    """Bits a channel as the file has them, 8 for fewer; the decoder's mode does not tell."""
    if image.format == "TIFF":
        return int(max(8, *image.tag_v2.get(BITS_PER_SAMPLE, (1,))))  # type: ignore[attr-defined]
    decoder, _, _, arguments = image.tile[0] if image.tile else ("", None, 0, "")
    raw, *more = (arguments,) if isinstance(arguments, str) else arguments or ("",)
    if decoder.startswith("ppm") and more:  # numbers up to any largest one, which the decoder scales
        levels = 255 if more[0] <= 255 else 65535
        if levels % more[0]:
            raise DataError(f"has {more[0]} as its largest value, expected one that divides 255 or 65535; {ADVICE}.")
        return 8 if levels == 255 else 16
    return 16 if ";16" in str(raw) and image.format != "BMP" else 8  # BMP: 16 bits for the three channels together
