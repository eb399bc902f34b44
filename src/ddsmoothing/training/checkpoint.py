"""The state of a training run in one file: tensors and a few numbers, no code; whole or not there at all.

It knows no model and no loop. The format is that of safetensors; a digest over everything tells a damaged file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save

from ddsmoothing.errors import DataError, RunError, first_error
from ddsmoothing.files import write_durably
from ddsmoothing.models.checkpoints import UNREADABLE, safetensors_metadata

FIELD: Final = "ddsmoothing-training"


class Position(BaseModel):
    """Where a run stands, and which run it is.

    Attributes:
        config: all options, the seed among them.   data: the training split's fingerprint.
        epoch, step: the next batch.   best: accuracy of the best epoch so far.   scale: of the gradients in fp16.
        digest: SHA-256 of everything else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    data: dict[str, str | int | None]
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    best: float = Field(allow_inf_nan=False)
    scale: float = Field(gt=0.0, allow_inf_nan=False)
    digest: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A position with its tensors.

    Attributes:
        model: the state dict.   optimizer: its state, ``KEY.PARAMETER``.   sigma: ``(N,)``.   sums: of the epoch's
            metrics so far.   votes: ``(N, K)``, the network's own, where the objective keeps them.
    """

    position: Position
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    sigma: torch.Tensor
    sums: torch.Tensor
    votes: torch.Tensor | None = None


def save_checkpoint(state: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that after a crash either the old or the new one is there; RunError where impossible."""
    tensors = {"sigma": state.sigma, "sums": state.sums}
    tensors |= {f"model.{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()}
    tensors |= {} if state.votes is None else {"votes": state.votes}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    position = state.position.model_copy(update={"digest": _digest(state.position, tensors)})
    write_whole(path, save(tensors, {FIELD: position.model_dump_json()}))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file by these bytes, durably; RunError where impossible."""
    try:
        write_durably(path, data)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. What was there before is still there.") from error


def is_checkpoint(path: Path) -> bool:
    """Does a file say that it is a checkpoint of a training run?"""
    try:
        return FIELD in safetensors_metadata(path)
    except UNREADABLE:
        return False


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; DataError where it is none, or damaged."""
    try:
        position, tensors = Position.model_validate_json(safetensors_metadata(path)[FIELD]), load(path.read_bytes())
    except KeyError:
        raise DataError(f"{path} is not a training checkpoint of this package.") from None
    except ValidationError as error:
        raise DataError(f"{path} is not a training checkpoint: {first_error(error)}.") from error
    except UNREADABLE as error:
        raise DataError(f"{path} is not a readable checkpoint: {error}.") from error
    if position.digest != _digest(position, tensors) or not {"sigma", "sums"} <= tensors.keys():
        raise DataError(f"{path} is damaged: its digest does not fit. Remove it to start anew.")
    return Checkpoint(
        position=position,
        model=_part(tensors, "model."),
        optimizer=_part(tensors, "optimizer."),
        sigma=tensors["sigma"],
        sums=tensors["sums"],
        votes=tensors.get("votes"),
    )


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(position: Position, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(position.model_dump(mode="json", exclude={"digest"}), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
