"""Smoothed predictions of a base classifier on a data set: the mean softmax of n noisy copies of each input, in a file.

Or, of several experts, the radius at which counts of n noisy copies promise each input's true class. They are targets
of training and claim nothing. A file is safetensors, bound to the data set and the model. What is done
so far stands in ``FILE.part``: whole rows behind one line that says what they are of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save

from ddsmoothing.certificate import L2Certificate
from ddsmoothing.counting.contract import BaseClassifier, Progress
from ddsmoothing.counting.engine import Caller, Engine
from ddsmoothing.data import Dataset
from ddsmoothing.devices import device_of, keep_freed_memory
from ddsmoothing.errors import DataError, InputError, RunError, first_error
from ddsmoothing.files import write_durably
from ddsmoothing.labels import checked_labels
from ddsmoothing.models import model_identity
from ddsmoothing.models.checkpoints import UNREADABLE, safetensors_metadata
from ddsmoothing.noise import LARGEST_SIGMA
from ddsmoothing.sigma.score import certified_scores
from ddsmoothing.training.checkpoint import write_whole
from ddsmoothing.training.keyed import Purpose, keys, normal

FIELD: Final = "ddsmoothing-predictions"
ROWS: Final = 1024  # noisy copies in one forward pass
COPIES: Final = 64  # of an input that share a key of their noise
Sigma = Annotated[float, Field(gt=0.0, le=LARGEST_SIGMA)]


class Source(BaseModel):
    """What predictions are of.

    Attributes:
        data: the data set's fingerprint.   model: its identity.   classes: K.
        sigma: of the noise, pixels in [0, 1]; several: of experts, each of which has a column of radii.
        n: noisy copies of each input, at each sigma.   seed: of the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: dict[str, str | int | None]
    model: str
    classes: Annotated[int, Field(ge=2)]
    sigma: Sigma | Annotated[tuple[Sigma, ...], Field(min_length=2)]
    n: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]

    @property
    def columns(self) -> int:
        """Numbers in a row: one a class, or one an expert."""
        return len(self.sigma) if isinstance(self.sigma, tuple) else self.classes


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Soft votes ``(N, K)``, float16, by sample index; rows sum to 1 but for rounding. Or ``(N, E)`` experts' radii."""

    source: Source
    votes: torch.Tensor


def make_predictions(
    model: BaseClassifier,
    data: Dataset,
    out: Path,
    *,
    classes: int,
    sigma: float | tuple[float, ...],
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
        sigma: of the noise; several: of experts, whose radii are written.
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
    count = len(votes) // source.columns
    return start, votes[: count * source.columns].reshape(count, source.columns)


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
    truth = _truth(data, source)
    with part.open("r+b") as file, Engine(model).open() as (caller,):
        file.seek(start + votes.nbytes)
        file.truncate()
        for first in range(len(votes), len(data), size):
            ids = torch.arange(first, min(first + size, len(data)))
            x = data[ids.numpy()][0].to(device)
            if truth is None:
                rows = _votes(caller, x, ids.to(device), source, precision)
            else:
                rows = _radii(caller, x, truth[ids].to(device), ids.to(device), source, precision)
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
    assert isinstance(source.sigma, float)
    total = torch.zeros(len(x), source.classes, device=x.device)
    for logits in _copies(caller, x, ids, source, source.sigma, precision):
        total += logits.softmax(2).sum(1)
    votes: NDArray[np.float16] = (total / source.n).cpu().numpy().astype(np.float16)
    return votes


def _copies(
    caller: Caller, x: torch.Tensor, ids: torch.Tensor, source: Source, sigma: float, precision: torch.dtype | None
) -> Iterator[torch.Tensor]:
    """Logits ``(B, m, K)`` of all noisy copies, a part of them at a time; the noise is the same at every sigma."""
    for block, done in enumerate(range(0, source.n, COPIES)):
        noise = normal(keys(source.seed, Purpose.PREDICTIONS, 0, block, ids), min(COPIES, source.n - done), x.shape[1:])
        with torch.autocast(x.device.type, precision, enabled=precision is not None):
            logits = caller.logits((x[:, None] + sigma * noise).flatten(0, 1), sigma, source.classes)
        yield logits.float().reshape(*noise.shape[:2], -1)


def _truth(data: Dataset, source: Source) -> torch.Tensor | None:
    """True classes ``(N,)``, where the radii of experts are asked for; InputError where there are none."""
    if not isinstance(source.sigma, tuple):
        return None
    if data.y is None:
        raise InputError("the radii of experts are those of the true classes, and this data set has no labels.")
    return torch.from_numpy(checked_labels(data.y, len(data), source.classes))


def _radii(
    caller: Caller,
    x: torch.Tensor,
    y: torch.Tensor,
    ids: torch.Tensor,
    source: Source,
    precision: torch.dtype | None,
) -> NDArray[np.float16]:
    """Radii ``(B, E)`` at which each expert's pairwise vote would give the true class; 0 where it would not."""
    assert isinstance(source.sigma, tuple)
    fewest = torch.zeros(len(x), source.columns, dtype=torch.int64)
    for expert, sigma in enumerate(source.sigma):
        won = torch.zeros(len(x), source.classes, dtype=torch.int64, device=x.device)
        for logits in _copies(caller, x, ids, source, sigma, precision):
            won += beaten(logits, y).sum(1)
        fewest[:, expert] = won.scatter(1, y[:, None], source.n).amin(1).cpu()
    sigmas, samples = np.array(source.sigma), np.full((len(x), source.columns), source.n)
    radii = certified_scores(L2Certificate(), fewest[..., None].numpy(), samples, sigmas)[..., 0]
    return np.maximum(radii, 0.0).astype(np.float16)


def beaten(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``(B, m, K)`` which classes the true one ``(B,)`` beats on each copy: by its logit, of equal ones the first."""
    own = logits.gather(2, y[:, None, None].expand(-1, logits.shape[1], 1))
    after = torch.arange(logits.shape[2], device=y.device) > y[:, None]
    return (own > logits) | ((own == logits) & after[:, None])


def load_predictions(path: Path) -> Predictions:
    """Read a file of predictions; DataError where it is none, or damaged."""
    try:
        source = Source.model_validate_json(safetensors_metadata(path)[FIELD])
        votes = load(path.read_bytes())["votes"]
    except (KeyError, ValidationError):
        raise DataError(f"{path} is not a file of smoothed predictions; `ddsmoothing predictions` makes one.") from None
    except UNREADABLE as error:
        raise DataError(f"{path} is not a readable file of predictions: {error}.") from error
    if votes.shape != (source.data.get("length"), source.columns) or votes.dtype != torch.float16:
        raise DataError(f"{path} is damaged: its votes are {tuple(votes.shape)} {votes.dtype}.")
    if isinstance(source.sigma, tuple):
        if not bool(((votes >= 0) & (votes < torch.inf)).all()):
            raise DataError(f"{path} is damaged: a radius in it is negative or no number.")
        return Predictions(source=source, votes=votes)
    total = votes.sum(1, dtype=torch.float32)
    if not bool((votes >= 0).all()) or not bool(((total - 1.0).abs() < 0.01).all()):
        raise DataError(f"{path} is damaged: a row of its votes does not sum to 1.")
    return Predictions(source=source, votes=votes)


def predictions_for(path: str, data: Dataset, classes: int | None) -> Predictions:
    """Those of a file, made for this data set; InputError where they were made for another.

    Args:
        classes: K of soft votes; None: radii of experts are wanted.
    """
    found = load_predictions(Path(path))
    wanted = "soft votes, made with --sigma" if classes is not None else "radii of experts, made with --experts"
    if isinstance(found.source.sigma, tuple) != (classes is None):
        raise InputError(f"the predictions in {path} are of another kind, expected {wanted}.")
    for what, got, expected in (
        ("data set", found.source.data, data.fingerprint()),
        ("number of classes", found.source.classes, found.source.classes if classes is None else classes),
    ):
        if got != expected:
            raise InputError(f"the predictions in {path} were made for another {what}: {got}, not {expected}.")
    return found
