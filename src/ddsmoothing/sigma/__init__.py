"""Choosing sigma for each input. Nothing here makes a claim: certification draws its own noise."""

from ddsmoothing.sigma.ascent import ASCENTS, Ascent, ascend_sigma
from ddsmoothing.sigma.dataset import (
    OptimizeIsotropicSmoothingParameters,
    OptimizeSmoothingParameters,
    choose_sigmas,
    optimize_isotropic_dds,
)
from ddsmoothing.sigma.files import SigmaFile, load_sigmas, save_sigmas
from ddsmoothing.sigma.policy import SigmaPolicy
from ddsmoothing.sigma.search import SigmaSearch, search_sigma

__all__ = [
    "ASCENTS",
    "Ascent",
    "OptimizeIsotropicSmoothingParameters",
    "OptimizeSmoothingParameters",
    "SigmaFile",
    "SigmaPolicy",
    "SigmaSearch",
    "ascend_sigma",
    "choose_sigmas",
    "load_sigmas",
    "optimize_isotropic_dds",
    "save_sigmas",
    "search_sigma",
]
