"""What commands say beside what they write. It knows no command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ddsmoothing.errors import DdsmoothingWarning, printable


@contextmanager
def plain_warnings() -> Iterator[None]:
    """While inside, warnings of this package are shown as one line each."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DdsmoothingWarning):
            click.echo(f"note: {printable(' '.join(str(message).split()))}", err=True)
        else:
            shown(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def say(text: str, *written: Path | None) -> None:
    """Say a line on standard output, or on standard error where a file was written to standard output itself."""
    from ddsmoothing.files import open_descriptor

    click.echo(text, err=any(path is not None and open_descriptor(path) is not None for path in written))
