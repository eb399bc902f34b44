"""SGD and AdamW: made from the options, their learning rate, their state by the names of parameters.

It knows no objective and no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

from ddsmoothing.errors import RunError
from ddsmoothing.training.config import TrainConfig

Tensors = dict[str, torch.Tensor]
STATE: Final = {"sgd": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}
SECOND_MOMENT: Final = 0.999  # AdamW's other decay; its first is the option momentum


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        betas = config.momentum, SECOND_MOMENT
        return torch.optim.AdamW(trained, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        trained,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


def learning_rate(config: TrainConfig, epoch: int, step: int, batches: int) -> float:
    """That of batch ``step`` of ``batches`` in an epoch."""
    done = epoch + step / batches
    rate = config.lr
    if config.schedule == "step":
        rate *= config.step_factor ** (epoch // config.step_epochs)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * done / config.epochs))
    grown = (done + 1.0 / batches) / config.warmup if config.warmup > 0.0 else 1.0
    return rate * min(1.0, grown)


def saved_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensors:
    """What the optimizer remembers: ``KEY.PARAMETER``, such as ``momentum_buffer.1.weight``."""
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def restore_state(
    optimizer: torch.optim.Optimizer, kind: str, model: nn.Module, state: Mapping[str, torch.Tensor]
) -> None:
    """Take up what ``saved_state`` gave; RunError where it is of another optimizer or model."""
    parameters = dict(model.named_parameters())
    for place, value in state.items():
        key, _, name = place.partition(".")
        scalar = key == "step"
        if (
            key not in STATE[kind]
            or name not in parameters
            or (value.ndim if scalar else value.shape) != (0 if scalar else parameters[name].shape)
        ):
            raise RunError(f"the checkpoint's optimizer state {place} is not one of {kind} for this model.")
        like = (
            torch.empty((), dtype=torch.float32) if scalar else torch.empty_like(parameters[name], requires_grad=False)
        )
        optimizer.state[parameters[name]][key] = like.copy_(value)
