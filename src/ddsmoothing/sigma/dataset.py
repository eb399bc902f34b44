"""Sigma for a whole data set: into a sigma file, or with the calls of the 2021 package ``ddsmoothing-python`` 1.0.0.

It adds nothing to the methods. In the calls of 2021 models may return probabilities, as they did then, and thetas are
saved with ``torch.save``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from ddsmoothing.certificate import Certificate
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.counting.engine import no_grad_logits
from ddsmoothing.data import Dataset
from ddsmoothing.devices import device_of, named_device
from ddsmoothing.errors import InputError, ShapeError, unknown
from ddsmoothing.files import write_durably
from ddsmoothing.models import model_identity
from ddsmoothing.sigma.ascent import ASCENTS, Ascent, ascend_sigma, ascend_theta
from ddsmoothing.sigma.files import SigmaFile, tensor_bytes
from ddsmoothing.sigma.search import search_sigma
from ddsmoothing.streams import checked_seed

METHODS = ("search", "ascent")
GROUP = 32  # inputs at once
CLOSE_TO_ONE = 1e-3

Loader = Iterable[tuple[torch.Tensor, Any, torch.Tensor]]


def choose_sigmas(
    smoothed: SmoothedClassifier,
    data: Dataset,
    ids: list[int],
    *,
    method: str,
    options: dict[str, Any],
    seed: int | None = None,
    model_id: str | None = None,
    progress: Progress | None = None,
) -> SigmaFile:
    """Choose a sigma for each of these samples.

    Args:
        method: ``search`` or ``ascent``.
        options: keyword arguments of ``search_sigma`` or ``ascend_sigma``; the second's sigma0 among them.
        model_id: names a model that has no hash.
        progress: called with samples done.
    Raises: InputError and its kin.
    """
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    identity = model_identity(smoothed.model, model_id)
    seed = checked_seed(seed)
    sigma: dict[int, float] = {}
    for start in range(0, len(ids), GROUP):
        group = ids[start : start + GROUP]
        x, _ = data[group]
        if method == "search":
            found = search_sigma(smoothed, x, seed=seed, ids=group, progress=progress, **options).sigma.tolist()
        else:
            x = x.to(device_of(smoothed.model) or x.device)
            moved = ascend_sigma(smoothed.model, x, certificate=smoothed.certificate, seed=seed + start, **options)
            found = moved.double().tolist()
            if progress is not None:
                progress(len(group))
        sigma.update(zip(group, found, strict=True))
    return SigmaFile(
        data=data.fingerprint(),
        model=identity,
        norm=smoothed.certificate.norm,
        method=method,
        options=options,
        seed=seed,
        sigma=sigma,
    )


def optimize_isotropic_dds(
    model: torch.nn.Module,
    batch: torch.Tensor,
    certificate: Certificate,
    learning_rate: float,
    sig_0: torch.Tensor,
    iterations: int,
    samples: int,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """Optimize one theta an input, as in 2021 (sigma for L2, the half-width lambda for L1).

    Args:
        model: classifier; rows that are probability vectors are taken as such, anything else as logits.
        batch: ``(B, ...)``.
        certificate: any of ours, or a subclass with ``sample_noise`` and ``compute_radius_estimate``.
        learning_rate: step of plain ascent.
        sig_0: ``(B,)``, not changed.
        iterations: steps.
        samples: noisy copies in each.
        device: default the model's.
    Returns: ``(B,)`` new thetas, detached.
    """
    place = device_of(model) or batch.device if device is None else named_device(device)
    x = batch.to(place)
    probs = are_probs(no_grad_logits(model, x[:2], float(sig_0.reshape(-1)[0])))
    return ascend_theta(
        model,
        x,
        sig_0.reshape(-1).to(place),
        certificate=certificate,
        ascent=Ascent(step=learning_rate, iterations=iterations, samples=samples, clamp=None),
        softmax=not probs,
    )


def are_probs(out: torch.Tensor) -> bool:
    """True if every row of model outputs ``(B, K)`` is a probability vector."""
    return bool((out >= 0).all()) and bool(((out.sum(1) - 1).abs() < CLOSE_TO_ONE).all())


class OptimizeSmoothingParameters:
    """Base of optimizers over a data set; subclasses give ``run_optimization`` and ``save_theta``."""

    def __init__(self) -> None:
        self.logger = logging.getLogger("ddsmoothing")

    def save_theta(self, *args: Any, **kwargs: Any) -> None:
        """Save optimized thetas."""
        raise NotImplementedError

    def run_optimization(self, *args: Any, **kwargs: Any) -> None:
        """Optimize over the data set."""
        raise NotImplementedError

    def log(self, message: str) -> None:
        """Log a message at level debug."""
        self.logger.debug(message)


class OptimizeIsotropicSmoothingParameters(OptimizeSmoothingParameters):
    """One theta for each input of a loader.

    Args:
        model: trained classifier.
        test_loader: yields ``(x, y, index)``.
        device: default the model's.
    """

    def __init__(self, model: torch.nn.Module, test_loader: Loader, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.model, self.loader = model, test_loader
        self.device = device_of(model) if device is None else named_device(device)
        self.data_samples = sum(len(index) for _, _, index in self.loader)
        self.log(f"There are in total {self.data_samples} instances in the testloader")

    def save_theta(self, thetas: torch.Tensor, filename: str) -> None:
        """Save a 1-D tensor of thetas, in the order of the indices."""
        write_durably(Path(filename), tensor_bytes(thetas))
        self.log("Optimized smoothing parameters are saved")

    def run_optimization(
        self,
        certificate: Certificate,
        lr: float = ASCENTS["package-2021"].step,
        theta_0: torch.Tensor | None = None,
        iterations: int = ASCENTS["package-2021"].iterations,
        num_samples: int = ASCENTS["package-2021"].samples,
        filename: str = "./",
    ) -> None:
        """Optimize and save.

        Args:
            certificate: as for ``optimize_isotropic_dds``.
            lr: step of plain ascent.
            iterations: steps.
            num_samples: noisy copies in each.
            theta_0: one start for each input of the loader, by index; it is not changed.
            filename: where ``save_theta`` writes.
        Raises: ShapeError if theta_0 does not have one number an input.
        """
        if theta_0 is None or theta_0.numel() != self.data_samples:
            got = None if theta_0 is None else theta_0.numel()
            raise ShapeError(f"theta_0 has {got} elements, expected {self.data_samples}: one for each input.")
        start = theta_0.detach().reshape(-1)
        thetas = start.clone()
        for batch, _, index in track(self.loader, "optimizing sigma", disable=not self.logger.isEnabledFor(20)):
            found = optimize_isotropic_dds(
                self.model, batch, certificate, lr, start[index], iterations, num_samples, self.device
            )
            thetas[index] = found.to(thetas)
        self.save_theta(thetas, filename)
