"""Stateless rules: class offsets and pair tables, fitted on inputs that no run will certify, and what they certify."""

from ddsmoothing.stateless.certify import TableCertification, certify_pairs, predict_pairs
from ddsmoothing.stateless.files import Figures, OffsetsFile, PairsFile, load_offsets, load_pairs, save_fit
from ddsmoothing.stateless.offsets import fit_offsets
from ddsmoothing.stateless.tables import fit_pairs

__all__ = [
    "Figures",
    "OffsetsFile",
    "PairsFile",
    "TableCertification",
    "certify_pairs",
    "fit_offsets",
    "fit_pairs",
    "load_offsets",
    "load_pairs",
    "predict_pairs",
    "save_fit",
]
