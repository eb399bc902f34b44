"""Training: one loop, an objective, a source of sigma.

It knows models, data and the ascent on sigma; it certifies nothing.
"""

from ddsmoothing.training.config import Catrs, Consistency, DataDependent, Macer, Selector, SmoothAdv, TrainConfig
from ddsmoothing.training.options import resolve
from ddsmoothing.training.predictions import load_predictions, make_predictions
from ddsmoothing.training.presets import PRESETS
from ddsmoothing.training.trainer import Trained, train

__all__ = [
    "PRESETS",
    "Catrs",
    "Consistency",
    "DataDependent",
    "Macer",
    "Selector",
    "SmoothAdv",
    "TrainConfig",
    "Trained",
    "load_predictions",
    "make_predictions",
    "resolve",
    "train",
]
