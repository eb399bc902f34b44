"""Runs for others to read: one HTML page, and a certificate card as JSON or Markdown. Names are imported when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddsmoothing.report.card import Card, card_of, card_schema, write_card
    from ddsmoothing.report.page import write_report
    from ddsmoothing.report.thumbnails import Pictures, pictures_of

_ROOMS = {
    **dict.fromkeys(("Card", "card_of", "card_schema", "write_card"), "card"),
    **dict.fromkeys(("Pictures", "pictures_of"), "thumbnails"),
    "write_report": "page",
}
__all__ = ["Card", "Pictures", "card_of", "card_schema", "pictures_of", "write_card", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'ddsmoothing.report' has no attribute {name!r}")
    return getattr(import_module(f"ddsmoothing.report.{_ROOMS[name]}"), name)
