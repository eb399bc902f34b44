"""Where a run starts: the network with its weights, the optimizer's state, and sigmas from a file.

It trains nothing. Files are data: tensors are matched by name and shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddsmoothing.data import Dataset
from ddsmoothing.errors import DataError, InputError
from ddsmoothing.models import DenoisedClassifier, ModelSpec, build_model, load_denoiser, load_model, spec_of
from ddsmoothing.models.conditional import Conditional
from ddsmoothing.models.load import is_code
from ddsmoothing.models.zoo import architecture
from ddsmoothing.sigma.files import load_sigmas
from ddsmoothing.training.checkpoint import is_checkpoint, load_checkpoint
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.keyed import seeded
from ddsmoothing.training.predictions import predictions_for

Tensors = dict[str, torch.Tensor]


def classes_of(config: TrainConfig, data: Dataset) -> int:
    """K; InputError where the labels do not fit it. 0 for a denoiser, which needs none; for a selector, experts."""
    if config.objective == "denoiser":
        return 0
    if config.objective == "selector":
        return radii_of_experts(config, data).shape[1]
    if data.y is None:
        raise InputError("training needs labels, and this data set has none.")
    highest = int(data.y.max())
    classes = config.num_classes or max(2, highest + 1)
    if highest >= classes:
        raise InputError(f"label {highest} in the training data but num_classes is {classes}.")
    return classes


def radii_of_experts(config: TrainConfig, data: Dataset) -> torch.Tensor:
    """``(N, E)`` float32, for a selector; InputError where they are of other data, or of other than num_classes."""
    assert config.predictions is not None
    radii = predictions_for(config.predictions, data, None).votes.float()
    if config.num_classes not in (None, radii.shape[1]):
        raise InputError(
            f"{config.predictions} holds radii of {radii.shape[1]} experts, got num_classes {config.num_classes}; "
            "leave it out."
        )
    return radii


def new_model(config: TrainConfig, seed: int, classes: int, shape: tuple[int, ...]) -> tuple[nn.Module, Tensors]:
    """The network with random weights, or those of ``config.init``; and the optimizer's state to start with.

    A network that is told sigma takes the weights of one that is not, too: what is added starts at zero.

    Raises: ModelError, DataError, InputError.
    """
    if config.denoiser is not None:
        alone = config.model_copy(update={"denoiser": None})
        small = shape if config.resize is None else (*shape[:1], config.resize, config.resize)
        classifier, _ = new_model(alone, seed, classes, small)
        denoiser = load_denoiser(config.denoiser, input_shape=shape)
        return DenoisedClassifier(denoiser, classifier, config.resize), {}
    path = None if config.init is None else Path(config.init)
    ours = load_checkpoint(path) if path is not None and is_checkpoint(path) else None
    with seeded(torch.device("cpu"), seed, 0):
        model = _built(config, classes, shape, path if ours is None else None)
    found = None if ours is None else ours.model
    if found is not None and _fits(model, found):
        model.load_state_dict(found)
        found = None
    model = _conditional(config, model)
    if found is not None:
        if not _fits(model, found):
            raise DataError(f"{path} holds another model than {config.model}: names or shapes of its weights differ.")
        model.load_state_dict(found)
    if path is None or not config.init_optimizer:
        return model, {}
    return model, _foreign_momentum(model, path) if ours is None else ours.optimizer


def _built(config: TrainConfig, classes: int, shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """The network, with weights of a file that is no checkpoint of a training run, or random ones."""
    known = None if is_code(config.model) else architecture(config.model)
    if known is not None and known.denoiser != (config.objective == "denoiser"):
        what = "a denoiser" if known.denoiser else "a classifier"
        raise InputError(f"{config.model} is {what}, which the objective {config.objective} does not train.")
    if known is not None and known.denoiser:
        spec = ModelSpec(arch=config.model, classes=(), mean=(), std=(), input_shape=shape)
        return spec.build() if weights is None else load_model(str(weights), arch=config.model).train()
    return build_model(
        config.model,
        num_classes=classes,
        input_shape=shape,
        normalize=config.normalize,
        weights=weights,
        random_weights=weights is None,
    )


def _fits(model: nn.Module, state: Tensors) -> bool:
    return {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }


def _conditional(config: TrainConfig, model: nn.Module) -> nn.Module:
    """The network told sigma as the options say."""
    spec = spec_of(model)
    if spec is None or spec.condition == config.condition:
        return model
    if spec.condition is not None:
        raise InputError(f"{config.init} holds a network with the condition {spec.condition}, got {config.condition}.")
    if not isinstance(model, nn.Sequential) or is_code(spec.arch):
        raise InputError(f"--condition is for named architectures, got {config.model}, which is code.")
    told = Conditional(model, str(config.condition)).train()
    told.spec = spec.model_copy(update={"condition": config.condition})  # type: ignore[assignment]
    return told


def _foreign_momentum(model: nn.Module, path: Path) -> Tensors:
    """The momentum in a checkpoint of Cohen's or the DDS code, by position among the parameters, as SGD has it."""
    try:
        file: Any = torch.load(path, map_location="cpu", weights_only=True)
        entries = (file["optimizer"] if "optimizer" in file else file["optimizer_param"])["state"]
        found = {int(place): entry["momentum_buffer"] for place, entry in entries.items()}
        shapes = {place: tuple(buffer.shape) for place, buffer in found.items()}
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path} holds no state of an SGD optimizer; leave --init-optimizer out.") from error
    named = list(model.named_parameters())
    if shapes != {place: tuple(parameter.shape) for place, (_, parameter) in enumerate(named)}:
        raise DataError(f"the optimizer state in {path} is for other parameters; leave --init-optimizer out.")
    return {f"momentum_buffer.{named[place][0]}": buffer for place, buffer in found.items()}


def sigmas_from(path: str, data: Dataset, values: torch.Tensor) -> torch.Tensor:
    """Sigmas ``(N,)`` with those of a file in their places; unchanged if it is for another split of this data set."""
    file = load_sigmas(path)
    fingerprint = data.fingerprint()
    if file.norm != "l2":
        raise InputError(f"{path} holds sigmas for {file.norm}, expected l2: training is with Gaussian noise.")
    if file.data.get("name") != fingerprint["name"]:
        raise InputError(f"{path} was made for the data set {file.data}, not {fingerprint}.")
    if not file.is_of(fingerprint):
        return values
    ids = np.array(sorted(file.sigma))
    if ids[0] < 0 or ids[-1] >= len(values):
        raise InputError(f"{path} names sample {ids[-1]}, but the data set has {len(values)}.")
    found = values.clone()
    found[torch.from_numpy(ids)] = torch.tensor([file.sigma[int(i)] for i in ids]).to(values)
    return found
