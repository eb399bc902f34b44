"""Random changes of training images, each of which depends on the image and one 64-bit key alone.

It knows no data sets but by name, and no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from ddsmoothing.errors import InputError, unknown

Augment = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
PADDING: Final = 4
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of a crop for ImageNet, as the field has it


def augmentation(name: str) -> Augment | None:
    """The training transform of a data set.

    ``cifar10``: a crop after padding by 4 zeros, and a mirror image half of the time. ``imagenet``: a crop of 8 to
    100 % of the area and a ratio of 3:4 to 4:3, scaled to the image's size, and a mirror image; it is taken from the
    image as the data set gives it, the centre of the photograph. Others: none.

    Returns: a function of images ``(B, C, H, W)`` and one key for each, or None.
    """
    if name not in AUGMENTATIONS:
        raise InputError(unknown("augmentation", name, AUGMENTATIONS))
    return AUGMENTATIONS[name]


def _generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def crop_and_flip(x: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """A window of the padded image, mirrored half of the time."""
    height, width = x.shape[2:]
    drawn = np.stack([_generator(key).integers([2 * PADDING + 1, 2 * PADDING + 1, 2]) for key in keys])
    top, left, flip = torch.from_numpy(drawn).T[:, :, None]
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(flip == 1, columns.flip(1), columns)
    batch = torch.arange(len(x))[:, None, None]
    picked = pad(x, (PADDING,) * 4)[batch, :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def resized_crop_and_flip(x: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """A window of random size and shape, scaled to the image's size, mirrored half of the time."""
    out = torch.empty_like(x)
    for i, key in enumerate(keys):
        generator = _generator(key)
        top, left, height, width = _window(generator, *x.shape[2:])
        window = x[i : i + 1, :, top : top + height, left : left + width]
        scaled = interpolate(window, size=x.shape[2:], mode="bilinear", antialias=True, align_corners=False)[0]
        out[i] = scaled.flip(-1) if generator.integers(2) else scaled
    return out.clamp_(0.0, 1.0)


def _window(generator: np.random.Generator, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Top, left, height and width; the whole image if no window fits in TRIES tries."""
    for _ in range(TRIES):
        area = rows * columns * generator.uniform(*AREA)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            top, left = generator.integers([rows - height + 1, columns - width + 1]).tolist()
            return top, left, height, width
    return 0, 0, rows, columns


AUGMENTATIONS: Final[dict[str, Augment | None]] = {
    "none": None,
    "cifar10": crop_and_flip,
    "imagenet": resized_crop_and_flip,
    "mnist": None,
    "fashion-mnist": None,
    "folder": None,
}
