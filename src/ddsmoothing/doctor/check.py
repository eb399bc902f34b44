"""One finding of the preflight. It knows nothing of what is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
NOTE: Final = "note"
WARN: Final = "warn"
FAIL: Final = "fail"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: short.   status: ``ok``, ``note``, ``warn`` or ``fail`` (certification would be worthless).
        message: what was found, and what to do about it.
    """

    name: str
    status: str
    message: str
