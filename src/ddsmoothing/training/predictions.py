"""Smoothed predictions of a base classifier on a data set: the mean softmax of n noisy copies of each input, in a file.

They are targets of training and claim nothing. A file is safetensors, bound to the data set and the model. What is done
so far stands in ``FILE.part``: whole rows behind one line that says what they are of.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save

from ddsmoothing.counting.contract import BaseClassifier, Progress
from ddsmoothing.counting.engine import Caller, Engine
from ddsmoothing.data import Dataset
from ddsmoothing.devices import device_of, keep_freed_memory
from ddsmoothing.errors import DataError, InputError, RunError, first_error
from ddsmoothing.files import write_durably
from ddsmoothing.models import model_identity
from ddsmoothing.models.checkpoints import UNREADABLE, safetensors_metadata
from ddsmoothing.noise import LARGEST_SIGMA
from ddsmoothing.training.checkpoint import write_whole
from ddsmoothing.training.keyed import Purpose, keys, normal

FIELD: Final = "ddsmoothing-predictions"
ROWS: Final = 1024  # noisy copies in one forward pass
COPIES: Final = 64  # of an input that share a key of their noise


class Source(BaseModel):
    """What predictions are of.

    Attributes:
        data: the data set's fingerprint.   model: its identity.   classes: K.
        sigma: of the noise, pixels in [0, 1].   n: noisy copies of each input.   seed: of the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: dict[str, str | int | None]
    model: str
    classes: Annotated[int, Field(ge=2)]
    sigma: Annotated[float, Field(gt=0.0, le=LARGEST_SIGMA)]
    n: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Soft votes ``(N, K)``, float16, by sample index; rows sum to 1 but for rounding."""

    source: Source
    votes: torch.Tensor


def make_predictions(
    model: BaseClassifier,
    data: Dataset,
    out: Path,
    *,
    classes: int,
    sigma: float,
    n: int,
    seed: int | None,
    model_id: str | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Write the smoothed predictions on a data set to a file, or go on with those that were begun; False if stopped.

    Args:
        model: inputs, and sigma if it takes sigma, to logits ``(B, K)``.
        out: a file; nothing is done where it holds these predictions already.
        seed: None: that of what was begun, else 0.
        precision: of autocast; None: float32.
        progress: called with inputs done.
        stop: asked after each block of inputs.
    Raises: RunError where ``out`` holds other predictions; InputError, ModelError.
    """
    keep_freed_memory()
    if out.exists() and not out.is_file():
        raise InputError(
            f"{out} is no regular file, expected one: predictions are written bit by bit and gone on with."
        )
    part = out.with_name(out.name + ".part")
    try:
        begun = _begun(part)
        seed = (0 if begun is None else begun.seed) if seed is None else seed
        named = model_identity(model, model_id)
        source = Source(data=data.fingerprint(), model=named, classes=classes, sigma=sigma, n=n, seed=seed)
        if out.exists():
            if load_predictions(out).source != source:
                raise RunError(f"{out} holds other predictions; give another --out, or remove it.")
            return True
        if begun not in (None, source):
            raise RunError(f"{part} was begun with other options, another model or data; remove it to start anew.")
        if not _append(model, data, source, part, precision, progress, stop):
            return False
        votes = torch.from_numpy(_rows(part, source)[1])
        write_whole(out, save({"votes": votes}, {FIELD: source.model_dump_json()}))
        part.unlink()
    except ValidationError as error:
        raise InputError(f"predictions cannot be made: {first_error(error)}.") from error
    except OSError as error:
        raise RunError(f"cannot write {part}: {error.strerror}. Choose another --out.") from error
    return True


def _begun(part: Path) -> Source | None:
    if not part.exists():
        return None
    with part.open("rb") as file:
        line = file.readline(2**20)
    try:
        return Source.model_validate_json(line)
    except ValidationError:
        raise RunError(f"{part} is damaged; remove it to start anew.") from None


def _rows(part: Path, source: Source) -> tuple[int, NDArray[np.float16]]:
    """Where the rows start in the file, and those that are whole."""
    with part.open("rb") as file:
        start = len(file.readline(2**20))
        votes = np.fromfile(file, np.float16)
    count = len(votes) // source.classes
    return start, votes[: count * source.classes].reshape(count, source.classes)


def _append(
    model: BaseClassifier,
    data: Dataset,
    source: Source,
    part: Path,
    precision: torch.dtype | None,
    progress: Progress | None,
    stop: Callable[[], bool] | None,
) -> bool:
    """Add the rows that are missing; False if stopped."""
    if not part.exists():
        write_durably(part, source.model_dump_json() + "\n")
    start, votes = _rows(part, source)
    device = device_of(model) or torch.device("cpu")
    size = max(1, ROWS // min(source.n, COPIES))
    with part.open("r+b") as file, Engine(model).open() as (caller,):
        file.seek(start + votes.nbytes)
        file.truncate()
        for first in range(len(votes), len(data), size):
            ids = torch.arange(first, min(first + size, len(data)))
            x = data[ids.numpy()][0].to(device)
            rows = _votes(caller, x, ids.to(device), source, precision)
            caller.check_finite()
            file.write(rows.tobytes())
            file.flush()
            if progress is not None:
                progress(len(ids))
            if stop is not None and stop() and int(ids[-1]) + 1 < len(data):
                os.fsync(file.fileno())
                return False
        os.fsync(file.fileno())
    return True


def _votes(
    caller: Caller, x: torch.Tensor, ids: torch.Tensor, source: Source, precision: torch.dtype | None
) -> NDArray[np.float16]:
    """Soft votes ``(B, K)`` of these inputs."""
    total = torch.zeros(len(x), source.classes, device=x.device)
    for block, done in enumerate(range(0, source.n, COPIES)):
        noise = normal(keys(source.seed, Purpose.PREDICTIONS, 0, block, ids), min(COPIES, source.n - done), x.shape[1:])
        with torch.autocast(x.device.type, precision, enabled=precision is not None):
            logits = caller.logits((x[:, None] + source.sigma * noise).flatten(0, 1), source.sigma, source.classes)
        total += logits.float().softmax(1).reshape(*noise.shape[:2], -1).sum(1)
    votes: NDArray[np.float16] = (total / source.n).cpu().numpy().astype(np.float16)
    return votes


def load_predictions(path: Path) -> Predictions:
    """Read a file of predictions; DataError where it is none, or damaged."""
    try:
        source = Source.model_validate_json(safetensors_metadata(path)[FIELD])
        votes = load(path.read_bytes())["votes"]
    except (KeyError, ValidationError):
        raise DataError(f"{path} is not a file of smoothed predictions; `ddsmoothing predictions` makes one.") from None
    except UNREADABLE as error:
        raise DataError(f"{path} is not a readable file of predictions: {error}.") from error
    if votes.shape != (source.data.get("length"), source.classes) or votes.dtype != torch.float16:
        raise DataError(f"{path} is damaged: its votes are {tuple(votes.shape)} {votes.dtype}.")
    total = votes.sum(1, dtype=torch.float32)
    if not bool((votes >= 0).all()) or not bool(((total - 1.0).abs() < 0.01).all()):
        raise DataError(f"{path} is damaged: a row of its votes does not sum to 1.")
    return Predictions(source=source, votes=votes)


def predictions_for(path: str, data: Dataset, classes: int) -> Predictions:
    """Those of a file, made for this data set and so many classes; InputError where they were made for another."""
    found = load_predictions(Path(path))
    for what, got, expected in (
        ("data set", found.source.data, data.fingerprint()),
        ("number of classes", found.source.classes, classes),
    ):
        if got != expected:
            raise InputError(f"the predictions in {path} were made for another {what}: {got}, not {expected}.")
    return found
