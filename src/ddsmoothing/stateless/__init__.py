"""Stateless rules: class offsets and pair tables, fitted on inputs that no run will certify, and what they certify."""

from ddsmoothing.stateless.certify import StatelessCertification, certify_stateless, predict_stateless
from ddsmoothing.stateless.files import Figures, OffsetsFile, PairsFile, load_offsets, load_pairs, save_fit
from ddsmoothing.stateless.offsets import fit_offsets
from ddsmoothing.stateless.tables import fit_pairs

__all__ = [
    "Figures",
    "OffsetsFile",
    "PairsFile",
    "StatelessCertification",
    "certify_stateless",
    "fit_offsets",
    "fit_pairs",
    "load_offsets",
    "load_pairs",
    "predict_stateless",
    "save_fit",
]
