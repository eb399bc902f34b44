"""What a model is: its spec, the number of its classes.

It knows no files and loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ddsmoothing.counting.engine import Engine
from ddsmoothing.errors import InputError, ModelError, unknown
from ddsmoothing.models.conditional import Conditional
from ddsmoothing.models.zoo import Normalize, architecture

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
STATISTICS: Final[dict[str, Statistics]] = {  # mean and standard deviation of each channel, as the field uses them
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.286,), (0.353,)),
}
PROBE_SIGMA: Final = 0.25  # for a model that takes sigma
NORMALIZATIONS: Final = ("auto", "center", "none", *STATISTICS)


def statistics(normalize: str, shape: tuple[int, ...]) -> Statistics:
    """Mean and standard deviation of the normalising layer.

    Args:
        normalize: a data set's name; ``auto``: CIFAR-10 for images of three channels up to 64 pixels, ImageNet for
            larger ones, Fashion-MNIST for one channel; ``center``: the same mean, nothing divided; ``none``.
        shape: of one input.
    """
    if normalize not in NORMALIZATIONS:
        raise InputError(unknown("normalisation", normalize, NORMALIZATIONS))
    nothing = (0.0,) * shape[0], (1.0,) * shape[0]
    if normalize == "none":
        return nothing
    by_shape = {1: "fashion-mnist", 3: "cifar10" if max(shape[1:]) <= 64 else "imagenet"}
    name = by_shape.get(shape[0], "none") if normalize in ("auto", "center") else normalize
    mean, std = STATISTICS.get(name, nothing)
    if len(mean) != shape[0]:
        raise InputError(f"the normalisation {normalize!r} is for {len(mean)} channels, the inputs have {shape[0]}.")
    return mean, nothing[1] if normalize == "center" else std


class ModelSpec(BaseModel):
    """What the metadata of a safetensors file says of its model.

    Attributes:
        arch: a key of ARCHITECTURES, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:function``.
        classes: their names; none of a denoiser.   mean, std: of the normalisation inside the model; empty if a
            function brought its own, or a denoiser its scale.
        training_sigmas: the noise it was trained with: one sigma, or the ends of a range; empty if unknown.
        input_shape: of one input; None: the architecture's.
        condition: how it is told sigma, see ``Conditional``; None: not at all, or in its own way.
        sigma_range: of a model that takes sigma, the least and the largest that it was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training_sigmas: tuple[Positive, ...] = ()
    input_shape: tuple[Annotated[int, Field(gt=0, le=1024)], ...] | None = None
    condition: Literal["channel", "film"] | None = None
    sigma_range: tuple[Positive, Positive] | None = None

    def build(self) -> nn.Module:
        """The architecture with random weights: a classifier behind its normalisation, or a denoiser."""
        known = architecture(self.arch)
        shape = self.input_shape or known.shape
        channels = 0 if known.denoiser else shape[0]
        if len(shape) != 3 or not len(self.mean) == len(self.std) == channels:
            raise ModelError(
                f"{len(self.mean)} means and {len(self.std)} deviations for inputs of shape {shape}, expected one for "
                f"each channel of (C, H, W){', none of a denoiser' if known.denoiser else ''}."
            )
        if known.denoiser != (len(self.classes) == 0) or len(self.classes) == 1 or (known.denoiser and self.condition):
            what = "denoiser, which has no classes and" if known.denoiser else "classifier, which has at least 2 and"
            raise ModelError(f"{self.arch} is a {what} got {len(self.classes)}, told sigma by {self.condition}.")
        model = known.build(len(self.classes), shape)
        if not known.denoiser:
            model = normalized(model, self.mean, self.std)
            model = model if self.condition is None else Conditional(model, self.condition)
        model.spec = self  # type: ignore[assignment]
        return model

    @property
    def sigma0(self) -> float | None:
        """Where to start a search: the geometric mean of the training sigmas, three digits; None if unknown."""
        if not self.training_sigmas:
            return None
        logs = [math.log(sigma) for sigma in self.training_sigmas]
        return float(f"{math.exp(sum(logs) / len(logs)):.3g}")

    def text(self) -> str:
        """As JSON; what is not said is left out."""
        return self.model_dump_json(exclude_none=True)


def normalized(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Sequential:
    """A network behind its normalising layer; a plain sequence of layers is continued."""
    layers = list(network) if type(network) is nn.Sequential else [network]
    return nn.Sequential(Normalize(mean, std), *layers)


def spec_of(model: Any) -> ModelSpec | None:
    """What is known of a loaded or built model; None where nothing is."""
    spec = getattr(model, "spec", None)
    return spec if isinstance(spec, ModelSpec) else None


def probe_classes(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> int:
    """The number of classes K that a model's logits ``(B, K)`` have on inputs x; ModelError where it has none."""
    return int(Engine(model).logits(x, PROBE_SIGMA).shape[1])
