"""Hyper-parameters of the papers, by name. Each has a ``-dds`` form with data-dependent sigma.

Sources: Cohen et al. 2019 (arXiv:1902.02918), Salman et al. 2019 (arXiv:1906.04584), Zhai et al. 2020
(arXiv:2001.02378), and for the data-dependent forms Alfarra et al. 2022 (arXiv:2012.04351) with its scripts.
"""

from __future__ import annotations

from typing import Any, Final

_SGD: Final = {"momentum": 0.9, "schedule": "step", "step_factor": 0.1, "sigma": 0.25}
_CIFAR: Final = {
    **_SGD,
    **{"data": "cifar10:data/cifar10", "model": "cifar-resnet18", "augmentation": "cifar10", "batch": 128},
    **{"lr": 0.01, "weight_decay": 5e-4, "epochs": 90, "step_epochs": 30},
}
_CIFAR_MACER: Final = {
    **_CIFAR,
    **{"objective": "macer", "copies": 16, "batch": 64, "epochs": 440, "step_epochs": 200},
    "macer": {"weight": 12.0, "gamma": 8.0, "beta": 16.0},
}
_IMAGENET: Final = {
    **_SGD,
    **{"data": "imagenet:data/imagenet", "model": "resnet50", "augmentation": "imagenet", "validation": 0.01},
    **{"batch": 400, "lr": 0.1, "weight_decay": 1e-4, "epochs": 90, "step_epochs": 30},
}
_IMAGENET_MACER: Final = {
    **_IMAGENET,
    **{"objective": "macer", "copies": 2, "batch": 256, "epochs": 120},
    "macer": {"weight": 6.0, "gamma": 8.0, "beta": 16.0},
}
_SMOOTHADV: Final = {"objective": "smoothadv", "smoothadv": {"epsilon": 64 / 256, "steps": 2, "warmup": 1}}
_LATE: Final = {"data_dependent": {"switch_epoch": 60, "steps": 1, "step": 1e-4, "samples": 1}}
# The data-dependent ImageNet models start from a trained one: give init (and init_optimizer).
_FINE_TUNED: Final = {
    **{"batch": 128, "lr": 0.01, "weight_decay": 5e-4, "epochs": 30},
    "data_dependent": {"switch_epoch": 0, "steps": 1, "step": 1e-4, "samples": 1},
}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "cifar10-gaussian": _CIFAR,
    "cifar10-gaussian-dds": {**_CIFAR, **_LATE},
    "cifar10-smoothadv": {**_CIFAR, **_SMOOTHADV},
    "cifar10-smoothadv-dds": {**_CIFAR, **_SMOOTHADV, **_LATE},
    "cifar10-macer": _CIFAR_MACER,
    "cifar10-macer-dds": {
        **_CIFAR_MACER,
        "copies": 64,
        "data_dependent": {"switch_epoch": 0, "steps": 10, "step": 1e-4, "samples": 64},
    },
    "imagenet-gaussian": _IMAGENET,
    "imagenet-gaussian-dds": {**_IMAGENET, **_FINE_TUNED},
    "imagenet-smoothadv": {**_IMAGENET, **_SMOOTHADV},
    "imagenet-smoothadv-dds": {
        **{**_IMAGENET, **_SMOOTHADV, **_FINE_TUNED},
        "smoothadv": {"epsilon": 64 / 256, "steps": 2, "warmup": 0},
    },
    "imagenet-macer": _IMAGENET_MACER,
    "imagenet-macer-dds": {**_IMAGENET_MACER, **_FINE_TUNED},
}
