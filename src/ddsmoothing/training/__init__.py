"""Training: one loop, an objective, a source of sigma.

It knows models, data and the ascent on sigma; it certifies nothing.
"""

from ddsmoothing.training.config import DataDependent, Macer, SmoothAdv, TrainConfig, resolve
from ddsmoothing.training.presets import PRESETS
from ddsmoothing.training.trainer import Trained, train

__all__ = ["PRESETS", "DataDependent", "Macer", "SmoothAdv", "TrainConfig", "Trained", "resolve", "train"]
