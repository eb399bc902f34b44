"""The errors this package raises: each message says what was got, what was expected and what to do.

It knows nothing of what it reports on.

    DdsmoothingError
    ├── InputError            an argument or option is not usable (exit code 2); also a ValueError
    │   ├── ShapeError        a tensor has the wrong shape or type
    │   ├── SigmaError        a sigma or lambda is not positive, not finite or not plausible
    │   └── InfeasibleError   no number of agreeing samples could give a certificate
    ├── ModelError            a model cannot be loaded or does not keep its contract
    ├── DataError             a data set or data file cannot be read
    ├── RunError              a run folder cannot be read or written
    └── StoreError            a certified memory cannot be opened, read or written

A DdsmoothingWarning is no error: what follows is right, and something was left out or is not as good as it could be.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import ValidationError


FORMULAS: Final = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # what a formula begins with, also in wide letters


class DdsmoothingError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 1


class DdsmoothingWarning(UserWarning):
    """Results are right, and not what was probably meant: something was left out, or exact noise could not be had."""


class InputError(DdsmoothingError, ValueError):
    """An argument or option is not usable as given."""

    exit_code = 2


class ShapeError(InputError):
    """A tensor or array has the wrong shape or type."""


class SigmaError(InputError):
    """A noise scale is not positive, not finite or not plausible."""


class InfeasibleError(InputError):
    """Even if every sample agreed, this (n, alpha) could not certify anything."""


class ModelError(DdsmoothingError):
    """A model cannot be loaded, or its answers are not logits ``(B, K)``."""


class DataError(DdsmoothingError):
    """A data set or data file cannot be read."""


class RunError(DdsmoothingError):
    """A run folder cannot be read or written."""


class StoreError(DdsmoothingError):
    """The file of a certified memory cannot be opened, read or written, or belongs to something else."""


def unknown(kind: str, got: str, known: Iterable[str]) -> str:
    """The message for an unknown name: the closest known one first, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(got, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {got!r}.{hint} Known: {', '.join(names)}."


def extra(name: str) -> str:
    """How to install what an extra brings, with and without a checkout."""
    return f"pip install 'ddsmoothing[{name}]', or '.[{name}]' in a checkout"


def printable(text: str) -> str:
    """Text from a file or a name, safe to show in one line: control and invisible characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_cell(text: str) -> str:
    """Text from a file or a name, safe in a table that a spreadsheet opens: in one line, and no formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip()[:1] in FORMULAS and shown.strip() else shown


def first_error(error: ValidationError) -> str:
    """The first thing a validation found, in one line."""
    entry = error.errors()[0]
    place = ".".join(str(part) for part in entry["loc"])
    return f"{place}: {entry['msg']}" if place else str(entry["msg"])
