"""What commands say beside what they write. It knows no command."""

from __future__ import annotations

from pathlib import Path

import click


def say(text: str, *written: Path | None) -> None:
    """Say a line on standard output, or on standard error where a file was written to standard output itself."""
    from ddsmoothing.files import open_descriptor

    click.echo(text, err=any(path is not None and open_descriptor(path) is not None for path in written))
