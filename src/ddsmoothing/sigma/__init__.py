"""Choosing sigma for each input. Nothing here makes a claim: certification draws its own noise."""

from ddsmoothing.sigma.ascent import ASCENTS, Ascent, ascend_sigma
from ddsmoothing.sigma.dataset import (
    OptimizeIsotropicSmoothingParameters,
    OptimizeSmoothingParameters,
    optimize_isotropic_dds,
)
from ddsmoothing.sigma.search import SigmaSearch, search_sigma

__all__ = [
    "ASCENTS",
    "Ascent",
    "OptimizeIsotropicSmoothingParameters",
    "OptimizeSmoothingParameters",
    "SigmaSearch",
    "ascend_sigma",
    "optimize_isotropic_dds",
    "search_sigma",
]
