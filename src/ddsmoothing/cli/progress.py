"""Progress of sampling: a bar on a terminal, a plain line every few seconds elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_SECONDS = 5.0
QUIET_SECONDS = 2.0  # shorter work says nothing


class SampleProgress:
    """Counts samples; call it with the number done since the last call. It moves inside one input too."""

    def __init__(self, total: int, what: str, unit: str = "samples") -> None:
        self._total, self._what, self._unit, self._done = total, what, unit, 0
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn(f"{{task.fields[rate]}} {unit}/s"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, rate="-")

    def __enter__(self) -> SampleProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)

    def __call__(self, samples: int) -> None:
        self._done += samples
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=_short(rate))
        elif now - self._start > QUIET_SECONDS and now - self._last >= LINE_SECONDS:
            self._last = now
            left = max(0.0, (self._total - self._done) / rate)
            share = 100 * self._done / self._total
            click.echo(f"{self._what}: {share:.0f} %, {_short(rate)} {self._unit}/s, {left:.0f} s left", err=True)
            sys.stderr.flush()


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
