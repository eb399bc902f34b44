"""The full command that continues a run: kept in its header as words, shown quoted, never run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ddsmoothing.errors import printable
from ddsmoothing.files import file_name

if TYPE_CHECKING:
    from ddsmoothing.runs import Header

KEY: Final = "options"  # in the header's config
NOT_KEPT: Final = ("out", "forecast")


def given_options(context: click.Context) -> list[str]:
    """The options of a command as they were given, a word each, but for the run's folder."""
    words: list[str] = []
    for param in context.command.params:
        name = param.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE or name in NOT_KEPT:
            continue
        value, option = context.params[name], max(param.opts, key=len)
        words += [option] if value is True else [option, str(value)]
    return [file_name(word) for word in words]


def continuing(folder: Path, header: Header) -> str:
    """The command that continues the run in a folder, in one line."""
    words = header.config.get(KEY)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        words = _by_names(header.config)
    if not words and not header.config:
        return "the same call of certify_run"
    return printable(shlex.join(["ddsmoothing", "certify", *words, "--out", str(folder)]))


def _by_names(config: dict[str, Any]) -> list[str]:
    """Of a header that keeps no words: what is not taken from it when the run is continued."""
    from ddsmoothing.cli.completing import DATA_SETS, MODELS

    found: list[str] = []
    for key, shipped in (("model", MODELS), ("data", DATA_SETS)):
        if isinstance(config.get(key), str) and config[key] not in shipped:
            found += [f"--{key}", config[key]]
    return found
