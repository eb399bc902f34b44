"""Stateless rules: class offsets and pair tables, fitted on inputs that no run will certify; experts behind a gate."""

from ddsmoothing.claims.centres import Centres
from ddsmoothing.stateless.certify import StatelessCertification, certify_stateless, predict_stateless
from ddsmoothing.stateless.files import Figures, OffsetsFile, PairsFile, load_offsets, load_pairs, save_fit
from ddsmoothing.stateless.offsets import fit_offsets
from ddsmoothing.stateless.routed import RoutedCertification, SmoothedGate, certify_routed, predict_routed
from ddsmoothing.stateless.tables import fit_pairs

__all__ = [
    "Centres",
    "Figures",
    "OffsetsFile",
    "PairsFile",
    "RoutedCertification",
    "SmoothedGate",
    "StatelessCertification",
    "certify_routed",
    "certify_stateless",
    "fit_offsets",
    "fit_pairs",
    "load_offsets",
    "load_pairs",
    "predict_routed",
    "predict_stateless",
    "save_fit",
]
