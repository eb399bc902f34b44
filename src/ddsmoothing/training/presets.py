"""Hyper-parameters of the papers, by name. Those of Alfarra et al. have a ``-dds`` form with data-dependent sigma.

Sources: Cohen et al. 2019 (arXiv:1902.02918), Salman et al. 2019 (arXiv:1906.04584), Zhai et al. 2020
(arXiv:2001.02378), and for the data-dependent forms Alfarra et al. 2022 (arXiv:2012.04351) with its scripts.

``-consistency``: Jeong and Shin 2020 (arXiv:2006.04062); ``-catrs``: Jeong, Kim and Shin 2023 (arXiv:2212.09000); both
with the commands of alinlab/smoothing-catrs: 150 epochs (ImageNet 90), a tenth every 50 (30), weight decay 1e-4. Their
scripts cut each batch of 256 into m parts, one step each, so the batch here is 256 / m. Consistency has lambda 20 at
sigma .25, 10 at .5 and 1; CAT-RS .5, 1 and 2, twice sigma. The smoothed predictions there are of one Gaussian baseline
at sigma .25, 10,000 copies an input; give ``predictions`` or ``teacher``. For ImageNet (sigma 1, 2 copies, 1 step) the
attack's radius doubles after epoch 80; that its learning rate falls once more at 85 is left out.

``fashion-mnist-conditional``, ``-denoiser`` and ``-selector`` are this package's own. ``cifar10-denoised`` fine-tunes a
classifier behind a frozen denoiser on denoised images; ``imagenet-denoised`` a denoiser before a frozen classifier by
the stability objective of Salman et al. 2020 (arXiv:2003.01908), with soft targets. Learning rates and lengths of these
two are ours, and no claim of reproduction. Both want ``denoiser`` and ``init``, or a model with these two parts.
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
_SLOW: Final = {"epochs": 150, "step_epochs": 50, "weight_decay": 1e-4}
_CATRS: Final = {"weight": 2.0, "epsilon": 256 / 256, "steps": 4}
_FASHION: Final = {"data": "fashion-mnist:data/fashion-mnist", "momentum": 0.9, "schedule": "cosine"}
_CONDITIONAL: Final = {
    **_FASHION,
    **{"model": "stride-cnn", "condition": "channel", "sigma": [0.2, 1.3], "epochs": 17, "batch": 256, "lr": 0.1},
    **{"nesterov": True, "weight_decay": 1e-4, "warmup": 1.5, "recompute_batchnorm": True, "channels_last": True},
}
_DENOISER: Final = {
    **_FASHION,
    **{"objective": "denoiser", "model": "small-unet", "sigma": [0.1, 1.5], "epochs": 10, "batch": 128},
    **{"optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-4, "warmup": 0.5},
}
_SELECTOR: Final = {
    **_FASHION,
    **{"objective": "selector", "model": "small-cnn", "sigma": 0.25, "copies": 2, "epochs": 10, "batch": 128},
    **{"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "warmup": 0.5},
    "selector": {"temperature": 0.1, "weight": 1.0},
}
_TUNED: Final = {"optimizer": "adamw", "weight_decay": 1e-4, "schedule": "cosine", "batch": 64}

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
    "cifar10-consistency": {
        **{**_CIFAR, **_SLOW, "model": "cifar-resnet110", "lr": 0.1, "batch": 128},
        **{"objective": "consistency", "copies": 2, "consistency": {"weight": 20.0, "eta": 0.5}},
    },
    "cifar10-catrs": {
        **{**_CIFAR, **_SLOW, "model": "cifar-resnet110", "lr": 0.1, "batch": 64},
        **{"objective": "catrs", "copies": 4, "catrs": _CATRS},
    },
    "imagenet-catrs": {
        **{**_IMAGENET, "batch": 128, "sigma": 1.0, "objective": "catrs", "copies": 2},
        "catrs": {**_CATRS, "steps": 1, "double_from": 80, "by_prediction": True},
    },
    "fashion-mnist-catrs": {
        **{**_SGD, **_SLOW, "data": _FASHION["data"], "model": "lenet", "lr": 0.01, "batch": 64},
        **{"objective": "catrs", "copies": 4, "catrs": _CATRS},
    },
    "fashion-mnist-conditional": _CONDITIONAL,
    "fashion-mnist-denoiser": _DENOISER,
    "fashion-mnist-selector": _SELECTOR,
    "cifar10-denoised": {
        **{**_CIFAR, **_TUNED, "lr": 1e-4, "epochs": 10, "warmup": 0.5},
        **{"sigma": [0.12, 1.0], "freeze": "denoiser"},
    },
    "imagenet-denoised": {
        **{**_IMAGENET, **_TUNED, "lr": 1e-5, "epochs": 25},
        **{"sigma": 0.25, "freeze": "classifier", "soft_targets": True},
    },
}
