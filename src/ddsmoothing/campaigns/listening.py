"""Who is told what happens in a run: all its listeners, by the run and by its workers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ddsmoothing.counting.contract import Workers
from ddsmoothing.runs.events import Listener


@contextmanager
def heard(workers: Workers | None, tell: Listener) -> Iterator[None]:
    """Listen to the workers, where there are any."""
    if workers is not None:
        workers.listener = tell
    try:
        yield
    finally:
        if workers is not None:
            workers.listener = None


class Tell:
    """Tells all listeners."""

    def __init__(self, listeners: Collection[Listener]) -> None:
        self._listeners = listeners

    def __call__(self, event: str, /, **details: Any) -> None:
        for listener in self._listeners:
            listener(event, **details)
