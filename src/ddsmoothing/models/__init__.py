"""Base classifiers by name: shipped models, architectures, checkpoints, and anyone's ``package.module:function``.

They know no smoothing. Weights are data, matched by name; nothing in a file is run.
"""

from ddsmoothing.models.by_sigma import BySigma
from ddsmoothing.models.checkpoints import save_model
from ddsmoothing.models.denoised import (
    DenoisedClassifier,
    Denoiser,
    DiffusionDenoiser,
    EdmDenoiser,
    PixelDenoiser,
    trained_range,
)
from ddsmoothing.models.denoisers import load_denoiser
from ddsmoothing.models.identity import identity_text, model_hash, model_identity
from ddsmoothing.models.load import SHIPPED, build_model, load_model
from ddsmoothing.models.output import Picked, picked
from ddsmoothing.models.spec import (
    NORMALIZATIONS,
    ModelSpec,
    probe_classes,
    spec_of,
)
from ddsmoothing.models.zoo import ARCHITECTURES, Normalize

__all__ = [
    "ARCHITECTURES",
    "NORMALIZATIONS",
    "SHIPPED",
    "BySigma",
    "DenoisedClassifier",
    "Denoiser",
    "DiffusionDenoiser",
    "EdmDenoiser",
    "ModelSpec",
    "Normalize",
    "Picked",
    "PixelDenoiser",
    "build_model",
    "identity_text",
    "load_denoiser",
    "load_model",
    "model_hash",
    "model_identity",
    "picked",
    "probe_classes",
    "save_model",
    "spec_of",
    "trained_range",
]
