"""Which inputs a run takes, and whether their labels name classes of the model. It knows no files."""

from __future__ import annotations

from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.labels import checked_labels


def subset_ids(data: Dataset, skip: int, maximum: int | None, shard: tuple[int, int] | None = None) -> list[int]:
    """Ids 0, skip, 2 skip, .., at most so many; of these the i-th, (i + n)-th, .. for the shard ``(i, n)``."""
    if skip < 1 or (maximum is not None and maximum < 1):
        raise InputError(f"skip={skip}, max={maximum}: expected whole numbers of at least 1.")
    ids = list(range(0, len(data), skip))[:maximum]
    if shard is None:
        return ids
    index, parts = shard
    if not 1 <= index <= parts <= len(ids):
        raise InputError(f"shard {index}/{parts}: expected i/n with 1 <= i <= n <= {len(ids)}, the number of inputs.")
    return ids[index - 1 :: parts]


def check_labels(data: Dataset, ids: list[int], num_classes: int) -> None:
    """Raise InputError if a label names no class of the model."""
    if data.y is not None:
        checked_labels(data.y[ids], len(ids), num_classes)
