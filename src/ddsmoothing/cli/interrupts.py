"""SIGINT and SIGTERM on the command line: the first ends the work in order, the second at once, both with code 75."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import click

INTERRUPTED: Final = 75
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """While inside, a signal raises KeyboardInterrupt; another one ends the process without waiting for anything."""
    if threading.current_thread() is not threading.main_thread():  # Python hands signals to the main thread alone
        yield
        return

    def at_once(number: int, frame: FrameType | None) -> None:
        os._exit(INTERRUPTED)

    def in_order(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, at_once)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, in_order) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Has SIGTERM or SIGINT come? The handlers are put back afterwards; a second SIGINT interrupts at once."""
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """Say how to go on if the work inside is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.Abort(advice()) from None
