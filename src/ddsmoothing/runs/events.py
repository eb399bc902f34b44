"""What happens in a run, told to listeners: a line of JSON each in ``events.jsonl``, and curves for TensorBoard.

Events are for people. No result depends on them, and a run goes on where they cannot be written.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ddsmoothing.errors import InputError, extra
from ddsmoothing.runs.store import EVENTS


class Listener(Protocol):
    """Anything that wants to know what happens in a run.

    Events and their details: ``start`` (inputs, done, kept samples, seed), ``counts`` (durable samples drawn so far in
    this session), ``rows`` (inputs made durable, done in all, samples so far, mean radius), ``retry`` and ``worker
    lost`` (from executors), ``stopped`` (why), ``failed`` (error), ``done``.
    """

    def __call__(self, event: str, /, **details: Any) -> None: ...


class EventLog:
    """Appends events with their UTC time to a run folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS

    def __call__(self, event: str, /, **details: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **details}, default=str) + "\n"
        with contextlib.suppress(OSError):  # a full disk is reported where results are written
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, (("\n" if torn else "") + line).encode())
            finally:
                os.close(descriptor)


class Scalars:
    """A listener that writes curves for TensorBoard, over the number of finished inputs.

    ``samples_per_second``; ``inputs_done``; ``mean_radius`` of the inputs finished in this session.

    Raises: InputError without the extra ``tensorboard``.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboard.summary import Writer  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise InputError(
                f"curves for TensorBoard need an extra: {extra('tensorboard')}; or leave them out."
            ) from None
        self._writer = Writer(str(folder))
        self._samples, self._since = 0, time.monotonic()
        self._inputs, self._radii = 0, 0.0

    def __call__(self, event: str, /, **details: Any) -> None:
        if event == "rows":
            now, step = time.monotonic(), details["done"]
            rate = (details["samples"] - self._samples) / max(now - self._since, 1e-9)
            self._samples, self._since = details["samples"], now
            self._inputs += details["inputs"]
            self._radii += details["inputs"] * details["mean_radius"]
            values = {"samples_per_second": rate, "inputs_done": step, "mean_radius": self._radii / self._inputs}
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if event in ("rows", "done", "stopped", "failed"):
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
