"""What a stateless classifier is fitted with: class offsets, on inputs that no run will certify."""

from ddsmoothing.stateless.files import Figures, OffsetsFile, load_offsets, save_fit
from ddsmoothing.stateless.offsets import fit_offsets

__all__ = ["Figures", "OffsetsFile", "fit_offsets", "load_offsets", "save_fit"]
