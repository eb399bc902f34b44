"""Choosing sigma for each input. Nothing here makes a claim: certification draws its own noise."""

from ddsmoothing.sigma.search import SigmaSearch, search_sigma

__all__ = ["SigmaSearch", "search_sigma"]
