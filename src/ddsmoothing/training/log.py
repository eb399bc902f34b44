"""What a training run writes for people: one JSON line an epoch, and TensorBoard where wanted. It computes nothing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddsmoothing.errors import InputError, RunError, extra
from ddsmoothing.training.checkpoint import write_whole

METRICS, BOARD = "metrics.jsonl", "tensorboard"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs that were written, in order; a last line cut off by a crash is left out."""
    path = folder / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    try:
        records = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if all(isinstance(record["epoch"], int) for record in records):
            return records
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise RunError(f"{path} is damaged: a line is no record of an epoch. Remove it to start another one.")


class Log:
    """Writes epochs to a folder; those from ``epoch`` on, left there by a run that was cut off, are dropped.

    Attributes:
        on_epoch: told each new record, where it is set.
    """

    def __init__(self, folder: Path, epoch: int, tensorboard: bool) -> None:
        self._folder = folder
        self.on_epoch: Callable[[dict[str, Any]], None] | None = None
        self._records = [record for record in read_metrics(folder) if record["epoch"] < epoch]
        self._write()
        self._board = _board(folder / BOARD, epoch) if tensorboard else None

    @property
    def records(self) -> tuple[dict[str, Any], ...]:
        """All epochs so far."""
        return tuple(self._records)

    def add(self, record: dict[str, Any], sigma: torch.Tensor, clean: torch.Tensor, noisy: torch.Tensor) -> None:
        """One epoch: its numbers, the sigmas in use ``(N,)``, some inputs ``(B, ...)`` and a noisy copy of each."""
        self._records.append(record)
        self._write()
        if self.on_epoch is not None:
            self.on_epoch(record)
        if self._board is None:
            return
        epoch = record["epoch"]
        for name, value in record.items():
            if name != "epoch" and value is not None:
                self._board.add_scalar(name.replace("_", "/", 1), value, epoch)
        self._board.add_histogram("sigma/histogram", sigma, epoch)
        if clean.ndim == 4 and clean.shape[1] in (1, 3):
            pictures = torch.cat([clean, noisy.to(clean)]).clamp(0.0, 1.0)
            self._board.add_images("samples", pictures, epoch)
        self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _write(self) -> None:
        write_whole(self._folder / METRICS, "".join(json.dumps(r) + "\n" for r in self._records).encode())


def _board(folder: Path, epoch: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the packages under it warn of one another
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(f"TensorBoard is not installed: {extra('tensorboard')}.") from None
    return SummaryWriter(folder, purge_step=epoch)
