"""Certified robustness by randomized smoothing, with a noise scale chosen for each input.

Start here, in order of use::

    load_model           a base classifier by name or from a file; any callable from inputs to logits will do
    load_data            inputs and labels by name or from a file
    SmoothedClassifier   the base classifier under noise: SmoothedClassifier(model)
    search_sigma         a sigma for each input, without labels and gradients
    SmoothedClassifier.certify    a class and a radius for each input: a Certification
    certified_accuracy   the share of inputs certified at each radius
    acr                  the average certified radius
    CertifyRequest       which inputs of a data set, at which sigma, with how many samples
    certify_run          all of them, into a folder, continued where it stopped
    load_run             a run read back: a Run

What a certificate promises, and for which classifier: docs/guarantees.md. The command line: ``ddsmoothing --help``.

Shapes are written with B inputs, K classes, n samples and d numbers in one input. Sigma and radii are in the units of
the input tensor, pixels in [0, 1] for images. Names are imported when first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddsmoothing.analysis import acr, certified_accuracy
    from ddsmoothing.campaigns import CertifyRequest, certify_run, fastest_form
    from ddsmoothing.certificate import Certificate, L1Certificate, L2Certificate
    from ddsmoothing.claims import ABSTAIN, Certification, Prediction
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.compat2021 import Smooth
    from ddsmoothing.data import Dataset, load_data
    from ddsmoothing.errors import DdsmoothingError
    from ddsmoothing.memory import CertifiedMemory
    from ddsmoothing.models import BySigma, DenoisedClassifier, load_denoiser, load_model
    from ddsmoothing.plots import plot_certified_accuracy
    from ddsmoothing.runs import Run, load_run
    from ddsmoothing.sigma import (
        OptimizeIsotropicSmoothingParameters,
        OptimizeSmoothingParameters,
        SigmaPolicy,
        SigmaSearch,
        ascend_sigma,
        optimize_isotropic_dds,
        search_sigma,
    )
    from ddsmoothing.stateless import fit_offsets

__version__ = _version("ddsmoothing")

_ROOMS = {
    "ABSTAIN": "claims",
    "BySigma": "models",
    "Certificate": "certificate",
    "Certification": "claims",
    "CertifiedMemory": "memory",
    "CertifyRequest": "campaigns",
    "Dataset": "data",
    "DdsmoothingError": "errors",
    "DenoisedClassifier": "models",
    "L1Certificate": "certificate",
    "L2Certificate": "certificate",
    "OptimizeIsotropicSmoothingParameters": "sigma",
    "OptimizeSmoothingParameters": "sigma",
    "Prediction": "claims",
    "Run": "runs",
    "SigmaPolicy": "sigma",
    "SigmaSearch": "sigma",
    "Smooth": "compat2021",
    "SmoothedClassifier": "classifier",
    "acr": "analysis",
    "ascend_sigma": "sigma",
    "certified_accuracy": "analysis",
    "certify_run": "campaigns",
    "fastest_form": "campaigns",
    "fit_offsets": "stateless",
    "load_data": "data",
    "load_denoiser": "models",
    "load_model": "models",
    "load_run": "runs",
    "optimize_isotropic_dds": "sigma",
    "plot_certified_accuracy": "plots",
    "search_sigma": "sigma",
}

__all__ = [
    "ABSTAIN",
    "BySigma",
    "Certificate",
    "Certification",
    "CertifiedMemory",
    "CertifyRequest",
    "Dataset",
    "DdsmoothingError",
    "DenoisedClassifier",
    "L1Certificate",
    "L2Certificate",
    "OptimizeIsotropicSmoothingParameters",
    "OptimizeSmoothingParameters",
    "Prediction",
    "Run",
    "SigmaPolicy",
    "SigmaSearch",
    "Smooth",
    "SmoothedClassifier",
    "acr",
    "ascend_sigma",
    "certified_accuracy",
    "certify_run",
    "fastest_form",
    "fit_offsets",
    "load_data",
    "load_denoiser",
    "load_model",
    "load_run",
    "optimize_isotropic_dds",
    "plot_certified_accuracy",
    "search_sigma",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'ddsmoothing' has no attribute {name!r}")
    value = getattr(import_module(f"ddsmoothing.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
