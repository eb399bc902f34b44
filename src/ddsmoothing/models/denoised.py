"""A denoiser in front of a classifier, as one base classifier that takes sigma. It knows no files, no architectures.

The images and sigma of everything public here are in [0, 1] units. Networks that were trained on images in [-1, 1] see
noise of twice that sigma; their denoisers do that conversion, and nobody else has to.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ddsmoothing.counting.engine import at_sigma, takes_sigma
from ddsmoothing.errors import InputError, ModelError, unknown
from ddsmoothing.models.schedules import sigmas, timestep_edges

PREDICTIONS: Final = ("epsilon", "v", "sample")


class Denoiser(nn.Module, ABC):
    """From noisy images and their sigma to an estimate of the clean ones: a function, without noise of its own.

    Args:
        network: what was trained.
        clip: clamp the estimate to [0, 1].
        sigma_range: the least and the largest sigma that it was trained for; None where that is not known.
        label: the one class that a class-conditional network is told, whatever the image; None for all others.
    """

    takes_sigma = True

    def __init__(
        self, network: nn.Module, *, clip: bool, sigma_range: tuple[float, float] | None, label: int | None
    ) -> None:
        super().__init__()
        if not callable(network):
            raise InputError(f"a denoiser's network is {type(network).__name__}, expected a module.")
        self.network, self.clip, self.label = network, clip, label
        self.sigma_range = checked_range(sigma_range)

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoised images of the shape and type of y; computed in float32 at least, but for the network itself.

        Args:
            y: ``(B, C, H, W)``, noisy.
            sigma: ``(B,)`` float32, standard deviation of the noise on each image.
        Raises: ModelError where the network gives something else than images.
        """
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        clean = self.estimate(wide, sigma.to(wide.dtype))
        return (clean.clamp(0.0, 1.0) if self.clip else clean).to(y.dtype)

    @abstractmethod
    def estimate(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoised images ``(B, C, H, W)`` in [0, 1] units, not clamped; both arguments in float32 or float64."""

    def ask(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """What the network says of images x, in their type; told: sigma or timesteps ``(B,)``, which are never cast.

        Of twice as many channels as x has, the second half being a variance, the first half is taken.
        """
        own = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), x.dtype)
        labels = () if self.label is None else (torch.full((len(x),), self.label, device=x.device),)
        found = self.network(x.to(own), told, *labels)
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        rows, channels, *sides = x.shape
        if got not in ((rows, channels, *sides), (rows, 2 * channels, *sides)):
            raise ModelError(f"the denoiser's network returned {got} for images {tuple(x.shape)}, expected images.")
        image: torch.Tensor = found[:, : x.shape[1]].to(x.dtype)
        return image

    def extra_repr(self) -> str:
        """All that maps images and sigma but is no weight, so that it is part of the model's hash."""
        plain = {key: value for key, value in vars(self).items() if not key.startswith("_") and key != "training"}
        return ", ".join(f"{key}={_shown(value)}" for key, value in sorted(plain.items()))


class DiffusionDenoiser(Denoiser):
    """One step of a variance-preserving diffusion model, from the noisy image to the clean one; never a sampling loop.

    With ``z = 2y - 1`` and ``s = 2 sigma`` the network sees ``x = z / sqrt(1 + s^2)`` at the timestep t of sigma. Any t
    is sound, a wrong one costs accuracy. The clean image is ``z - s eps``, or ``(x - s v) / sqrt(1 + s^2)``, or x0.

    Args:
        network: called ``network(x, t)``, x ``(B, C, H, W)``, t ``(B,)`` int64; with a label ``network(x, t, labels)``.
        table: ``abar_t``, such as ``alphas_bar("linear", 1000)``.
        prediction: what the network gives: ``epsilon``, ``v`` or ``sample`` (x0).
        rule: how t is found, ``nearest`` or ``ceil``; see ``timestep_edges``.
        timestep_scale: where it is not 1, the network is told t times it, as float32.
        clip, label: see ``Denoiser``.
        sigma_range: default the ends of the table.
    Raises: InputError.
    References: Carlini et al. 2022, arXiv:2206.10550, section 3; Salimans and Ho 2022, arXiv:2202.00512 (v). Here abar
        is that of sigma itself, ``1 / (1 + s^2)``, in place of the table's nearest.
    """

    def __init__(
        self,
        network: nn.Module,
        table: Sequence[float] | NDArray[np.float64],
        *,
        prediction: str = "epsilon",
        rule: str = "nearest",
        timestep_scale: float = 1.0,
        clip: bool = True,
        sigma_range: tuple[float, float] | None = None,
        label: int | None = None,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise InputError(unknown("prediction", prediction, PREDICTIONS))
        own = sigmas(table)
        ends = float(own[0]), float(own[-1])
        super().__init__(network, clip=clip, sigma_range=sigma_range or ends, label=label)
        self.prediction, self.rule, self.timestep_scale = prediction, rule, float(timestep_scale)
        # neither buffers nor parameters, so that no cast reaches them
        self.table = np.asarray(table, dtype=np.float64)
        self._edges = torch.from_numpy(timestep_edges(self.table, rule))

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timestep of each sigma, ``(B,)`` int64; it has no gradient."""
        return torch.bucketize(sigma.detach().float().contiguous(), self._edges.to(sigma.device))

    def estimate(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = self.timestep(sigma)
        z, s = 2.0 * y - 1.0, _spread(2.0 * sigma, y)
        total = (1.0 + s.square()).sqrt()
        x = z / total
        found = self.ask(x, t if self.timestep_scale == 1.0 else t.float() * self.timestep_scale)
        if self.prediction == "epsilon":
            found = z - s * found
        elif self.prediction == "v":
            found = (x - s * found) / total
        return (found + 1.0) / 2.0


class EdmDenoiser(Denoiser):
    """A network in EDM's preconditioning: ``c_skip z + c_out F(c_in z, ln(s)/4)``, ``z = 2y - 1``, ``s = 2 sigma``.

    Args:
        network: F, called ``network(x, noise)``, x ``(B, C, H, W)``, noise ``(B,)``; with a label as the other one.
        data_std: EDM's sigma_data, of images in [-1, 1].
        clip, label: see ``Denoiser``.
        sigma_range: default half of EDM's 0.002 .. 80, since these are of images in [-1, 1].
    References: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        data_std: float = 0.5,
        clip: bool = False,
        sigma_range: tuple[float, float] | None = (0.001, 40.0),
        label: int | None = None,
    ) -> None:
        super().__init__(network, clip=clip, sigma_range=sigma_range, label=label)
        if not 0.0 < data_std < float("inf"):
            raise InputError(f"data_std is {data_std}, expected a positive number.")
        self.data_std = float(data_std)

    def estimate(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        z, s = 2.0 * y - 1.0, _spread(2.0 * sigma, y)
        total = s.square() + self.data_std**2
        found = self.ask(z / total.sqrt(), (2.0 * sigma).log() / 4.0)
        return ((self.data_std**2 / total) * z + s * self.data_std / total.sqrt() * found + 1.0) / 2.0


class PixelDenoiser(Denoiser):
    """A network called ``network(y, sigma)`` that gives the clean image, all of it in [0, 1] units already.

    Args:
        network: sigma is ``(B,)``.
        clip: see ``Denoiser``.
        sigma_range: default what the network or its spec says of itself.
    """

    def __init__(
        self, network: nn.Module, *, clip: bool = False, sigma_range: tuple[float, float] | None = None
    ) -> None:
        super().__init__(network, clip=clip, sigma_range=sigma_range or trained_range(network), label=None)

    def estimate(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.ask(y, sigma)


class DenoisedClassifier(nn.Module):
    """``f(y, sigma) = classifier(denoiser(y, sigma))``: one base classifier that serves every sigma.

    What is certified is this function under noise that is drawn outside. A denoiser that is bad at some sigma costs
    accuracy there and never makes a certificate false.

    Args:
        denoiser: a ``Denoiser``, or any module called ``denoiser(y, sigma)``.
        classifier: from images to logits; one that takes sigma is told it too.
        resize: height and width that the classifier wants, or one number for both; None: those of the image. Bicubic
            with antialiasing.
        classifier_range: the numbers that the classifier wants for black and white; (-1, 1) for one that wants a mean
            and deviation of one half, (0, 1) for one that normalises by itself.
    Raises: InputError.
    References: Salman et al. 2020, arXiv:2003.01908; Carlini et al. 2022, arXiv:2206.10550.
    """

    takes_sigma = True

    def __init__(
        self,
        denoiser: nn.Module,
        classifier: nn.Module,
        resize: int | tuple[int, int] | None = None,
        classifier_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not takes_sigma(denoiser):
            raise InputError(
                f"the denoiser is {type(denoiser).__name__}, which does not take sigma; wrap its network in one of "
                "DiffusionDenoiser, EdmDenoiser and PixelDenoiser."
            )
        size = (resize, resize) if isinstance(resize, int) else resize
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise InputError(f"resize is {resize}, expected a height and a width.")
        low, high = (float(end) for end in classifier_range)
        if not low < high:
            raise InputError(f"classifier_range is {classifier_range}, expected two ascending numbers.")
        self.denoiser, self.classifier = denoiser, classifier
        self.resize, self.classifier_range = None if size is None else tuple(size), (low, high)

    @property
    def sigma_range(self) -> tuple[float, float] | None:
        """The denoiser's."""
        return trained_range(self.denoiser)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, K)``.

        Args:
            x: ``(B, C, H, W)``, noisy, in [0, 1] units.
            sigma: ``(B,)`` float32, standard deviation of the noise on each image, in the same units.
        """
        clean = self.denoiser(x, sigma)
        if self.resize is not None:
            wide = clean.to(torch.promote_types(clean.dtype, torch.float32))
            clean = functional.interpolate(wide, self.resize, mode="bicubic", antialias=True).to(clean.dtype)
        low, high = self.classifier_range
        if (low, high) != (0.0, 1.0):
            clean = clean * (high - low) + low
        return at_sigma(self.classifier, sigma)(clean)

    def extra_repr(self) -> str:
        """What is no weight of any part."""
        return f"resize={self.resize}, classifier_range={self.classifier_range}"


def trained_range(model: Any) -> tuple[float, float] | None:
    """The least and the largest sigma that a model which takes sigma was trained for, as it says; None: not known."""
    if takes_sigma(model):
        for source in (model, getattr(model, "spec", None)):
            if (found := getattr(source, "sigma_range", None)) is not None:
                return checked_range(found)
    return None


def checked_range(sigma_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Two positive ascending numbers, or None."""
    if sigma_range is None:
        return None
    try:
        low, high = (float(end) for end in sigma_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0.0 < low < high < float("inf"):
        raise InputError(f"sigma_range is {sigma_range!r}, expected two positive numbers, the smaller first.")
    return low, high


def _spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``(B,)`` as ``(B, 1, ..)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _shown(value: object) -> str:
    """A table by its digest."""
    return hashlib.sha256(value.tobytes()).hexdigest() if isinstance(value, np.ndarray) else repr(value)
