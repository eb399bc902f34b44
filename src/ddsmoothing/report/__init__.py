"""Runs for people to read: one self-contained page, and a card that says what was certified and what was not."""

from ddsmoothing.report.card import Card, card_of, card_schema, write_card
from ddsmoothing.report.page import write_report
from ddsmoothing.report.thumbnails import Pictures, pictures_of

__all__ = ["Card", "Pictures", "card_of", "card_schema", "pictures_of", "write_card", "write_report"]
