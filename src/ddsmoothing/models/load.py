"""Base classifiers by name: shipped models, architectures, files, and anyone's ``package.module:function``.

It knows no smoothing and no formats.
"""

from __future__ import annotations

import importlib
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from torch import nn

from ddsmoothing.errors import InputError, ModelError, first_error, unknown
from ddsmoothing.models.by_sigma import PREFIX, BySigma, read_ranges
from ddsmoothing.models.checkpoints import Checkpoint, State, load_state, read_checkpoint, split
from ddsmoothing.models.foreign import is_foreign, load_foreign
from ddsmoothing.models.output import picked
from ddsmoothing.models.spec import ModelSpec, Statistics, normalized, statistics
from ddsmoothing.models.zoo import ARCHITECTURES, architecture, from_library, in_library, library, published

SHIPPED: Final[dict[str, str]] = {
    "fashion-mnist-cnn": "fashion-mnist-cnn.safetensors",
    "fashion-mnist-conditional": "fashion-mnist-conditional.safetensors",
}
OTHER_NAMES: Final = {"cifar_resnet20": "cifar-resnet20", "cifar_resnet110": "cifar-resnet110"}  # Cohen, Salman
SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".tar", ".ckpt")  # a missing file, not a misspelt name
LAYER: Final = ("mean", "means"), ("std", "stds", "sds")  # buffers of a normalising layer, as they are called


def is_code(name: str) -> bool:
    """Is it ``package.module:function``?"""
    return ":" in name and not in_library(name)


def load_model(
    name: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    normalize: str = "auto",
    weights: Path | None = None,
    weights_key: str | None = None,
    download: bool = False,
    random_weights: bool = False,
    output: str | None = None,
    trust: bool = False,
) -> nn.Module:
    """A base classifier in eval mode.

    Args:
        name: A shipped name; a file of weights, which says its architecture or is told it by ``arch``; an
            architecture as for ``build_model``, which needs weights; ``package.module:function``, a function without
            arguments (or a module object) that gives the model, for which that code is imported and run;
            ``by-sigma:FILE.toml``, several of these, each for a range of sigma; ``torchscript:FILE``, a program; or
            ``onnx:FILE``, a bare callable.
        arch: Of a file's network, where the file does not say; so are num_classes, input_shape and normalize.
        num_classes: K.
        input_shape: Of one input, ``(C, H, W)``.
        normalize: See ``statistics``.
        weights: Of an architecture, a file of them; see ``build_model``.
        weights_key: Which of several sets of weights in a file, such as ``state_dict_ema``; see ``read_checkpoint``.
        download: See ``build_model``.
        random_weights: See ``build_model``.
        output: Where the logits are in what the model returns: an entry, an attribute, or a place in a tuple.
        trust: Load a TorchScript file, which runs what is in it.
    Returns:
        A module from ``(B, ...)`` to logits ``(B, K)``; ``spec_of`` tells what is known of it.
    Raises:
        ModelError, InputError.
    """
    told: dict[str, object] = {
        "arch": arch,
        "weights": weights,
        "weights_key": weights_key,
        "random_weights": random_weights or None,
    }
    told |= {"normalize": None if normalize == "auto" else normalize}
    if name.startswith(PREFIX) or is_foreign(name):
        if given := [key for key, value in told.items() if value is not None]:
            raise InputError(f"the file of {name} says all of its model; leave {', '.join(given)} out.")
        if is_foreign(name):
            found = load_foreign(name, trust)
        else:
            found = _by_sigma(Path(name.removeprefix(PREFIX)), num_classes, input_shape, download).eval()
    else:
        found = _named(
            name,
            arch,
            num_classes=num_classes,
            input_shape=input_shape,
            normalize=normalize,
            weights=weights,
            weights_key=weights_key,
            download=download,
            random_weights=random_weights,
        )
    return found if output is None else picked(found, output)  # type: ignore[no-any-return]


def _named(
    name: str,
    arch: str | None,
    *,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    normalize: str,
    weights: Path | None,
    weights_key: str | None,
    download: bool,
    random_weights: bool,
) -> nn.Module:
    """A shipped model, an architecture, a file of weights, or what a function gives, in eval mode."""
    if weights_key is not None and weights is None and not _is_file(name):
        raise InputError(f"--weights-key is for files of weights, got the model {name!r}.")
    if name in SHIPPED:
        with as_file(files("ddsmoothing") / "assets" / SHIPPED[name]) as path:
            return _from_file(read_checkpoint(path), arch, None, None, normalize).eval()
    if name in ARCHITECTURES or in_library(name):
        known = architecture(name)
        return build_model(
            name,
            num_classes=num_classes or known.classes,
            input_shape=input_shape or known.shape,
            normalize=normalize,
            weights=weights,
            weights_key=weights_key,
            download=download,
            random_weights=random_weights,
        ).eval()
    if not _is_file(name) and not is_code(name):
        known_names = [*SHIPPED, *ARCHITECTURES]
        raise InputError(unknown("model", name, known_names) + " Or a file of weights, or package.module:function.")
    if weights is not None or random_weights:
        raise InputError(f"--weights and --random-weights are for named architectures, got the model {name!r}.")
    if not _is_file(name):
        if arch is not None or normalize != "auto":
            raise InputError(f"--arch and --normalize are for files, got the model {name!r}, which is code.")
        return _from_function(name)
    return _from_file(read_checkpoint(Path(name), weights_key), arch, num_classes, input_shape, normalize).eval()


def _is_file(name: str) -> bool:
    return name not in (*SHIPPED, *ARCHITECTURES) and (Path(name).exists() or Path(name).suffix in SUFFIXES)


def _by_sigma(path: Path, num_classes: int | None, shape: tuple[int, ...] | None, download: bool) -> BySigma:
    """The networks of a file of ranges as one."""
    ranges, networks = read_ranges(path), []
    for one in ranges.range:
        for named in (one.model, one.arch or ""):
            if is_code(named):
                raise ModelError(
                    f"{path} names {named!r}, and code that a file names is not run; make a BySigma in Python."
                )
        network = load_model(
            one.model,
            arch=one.arch,
            num_classes=one.num_classes or num_classes,
            input_shape=shape,
            normalize=one.normalize,
            weights=None if one.weights is None else Path(one.weights),
            download=download,
        )
        networks.append((one.upper, network))
    return BySigma(networks, sigma_range=ranges.sigma_range)


def build_model(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    normalize: str = "auto",
    weights: Path | None = None,
    weights_key: str | None = None,
    download: bool = False,
    random_weights: bool = False,
) -> nn.Module:
    """A network of this architecture behind its normalisation, in training mode; its ``spec`` is kept with it.

    Args:
        name: a key of ARCHITECTURES, ``torchvision:NAME``, ``timm:NAME``, or ``package.module:function``, which is
            imported and run, and brings its own weights and normalisation.
        input_shape: of one input, ``(C, H, W)``.   normalize: see ``statistics``.
        weights: a file of them; weights_key: which of those in it.   random_weights: untrained.
        download: those that torchvision or timm offer.
    Raises: ModelError, InputError.
    """
    if is_code(name):
        return _with_spec(_spec(name, num_classes, input_shape, ((), ())))
    if weights is not None and random_weights:
        raise InputError("expected one of --weights and --random-weights.")
    if weights is not None:
        return _from_file(read_checkpoint(weights, weights_key), name, num_classes, input_shape, normalize)
    if not random_weights:
        if download and in_library(name):
            return _downloaded(name, num_classes, input_shape, normalize)
        raise InputError(
            f"{name} is an architecture and needs weights: --weights FILE, --download (torchvision and timm only), or "
            "--random-weights for an untrained network."
        )
    return _spec(name, num_classes, input_shape, _statistics(name, normalize, input_shape, {})).build()


def _spec(name: str, num_classes: int, shape: tuple[int, ...], layer: Statistics) -> ModelSpec:
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}, expected at least 2.")
    classes = tuple(str(i) for i in range(num_classes))
    try:
        return ModelSpec(arch=name, classes=classes, mean=layer[0], std=layer[1], input_shape=shape)
    except ValidationError as error:
        raise InputError(
            f"{name} takes images (C, H, W): {first_error(error)}; got inputs of shape {shape}."
        ) from error


def _statistics(name: str, normalize: str, shape: tuple[int, ...], layer: State) -> Statistics:
    """Of the normalising layer: what is asked for, else what the file says, else what timm says, else by shape."""
    if len(shape) != 3:
        raise InputError(f"{name} takes images (C, H, W), got inputs of shape {shape}.")
    if normalize == "auto":
        mean, std = (_numbers(layer, keys) for keys in LAYER)
        if mean:
            return mean, std or (1.0,) * len(mean)
        if name.startswith("timm:") and shape[0] == 3:
            config = library(name)[0].get_pretrained_cfg(name.partition(":")[2])
            if config is not None:
                return tuple(config.mean), tuple(config.std)
        normalize = "auto" if is_code(name) else architecture(name).normalize
    return statistics(normalize, shape)


def _numbers(layer: State, keys: tuple[str, ...]) -> tuple[float, ...]:
    """The first of these buffers, in the shortest decimals: 0.4914 stays that."""
    found = [layer[key].float().flatten().numpy() for key in keys if key in layer]
    return tuple(float(str(value)) for value in found[0]) if found else ()


def _from_spec(file: Checkpoint, spec: ModelSpec, arch: str | None) -> nn.Module:
    """The model of a file that says what it is."""
    if arch not in (None, spec.arch):
        raise InputError(f"{file.name} holds a {spec.arch}, got --arch {arch}; leave it out.")
    if not is_code(spec.arch):
        model = spec.build()
    elif arch is None:
        raise ModelError(
            f"{file.name} holds weights for {spec.arch}, and code that a file names is not run; add --arch {spec.arch}."
        )
    else:
        model = _with_spec(spec)
    load_state(model, file.state, file.name)
    return model


def _from_file(
    file: Checkpoint, arch: str | None, num_classes: int | None, shape: tuple[int, ...] | None, normalize: str
) -> nn.Module:
    """The model of a file, which says what it is or is told."""
    if file.spec is not None:
        if normalize != "auto":
            raise InputError(f"{file.name} has its own normalisation; leave --normalize out.")
        return _from_spec(file, file.spec, arch)
    if arch is None and file.arch is not None and not is_code(file.arch):  # code that a file names is not run
        arch = OTHER_NAMES.get(file.arch, file.arch)
    if arch is None:
        raise ModelError(f"{file.name} has no ddsmoothing metadata, so its architecture is unknown; give --arch.")
    layer, state = split(file.state)
    if is_code(arch):
        model = _module(arch)
        own = file.state.keys() == model.state_dict().keys()  # of layers 0, 1, .. itself, perhaps
        load_state(model, file.state if own else state, file.name)
        return model
    known = architecture(arch)
    shape = shape or known.shape
    if num_classes is None:
        head = state.get("fc.bias")
        num_classes = known.classes if head is None or head.ndim != 1 else len(head)
    model = _spec(arch, num_classes, shape, _statistics(arch, normalize, shape, layer)).build()
    # a network behind a normalisation of its own; a sequence of layers is one with it
    network = model if state.keys() == model.state_dict().keys() else model.get_submodule("1")
    load_state(network, state, file.name)
    return model


def _downloaded(name: str, num_classes: int, shape: tuple[int, ...], normalize: str) -> nn.Module:
    """A network of torchvision or timm with the weights that the library offers first."""
    module, short = library(name)
    spec = _spec(name, num_classes, shape, _statistics(name, normalize, shape, {}))
    try:
        offered = published(module, short, num_classes)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"the weights of {name} could not be downloaded: {error}") from error
    network = from_library(name, num_classes, shape)
    load_state(network, offered, name)
    model = normalized(network, spec.mean, spec.std)
    model.spec = spec  # type: ignore[assignment]
    return model


def _with_spec(spec: ModelSpec) -> nn.Module:
    """What a function gives, with the spec kept with it."""
    model = _module(spec.arch)
    model.spec = spec  # type: ignore[assignment]
    return model


def _module(name: str) -> nn.Module:
    """What a function gives, if weights can be loaded into it."""
    model = _from_function(name)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gave a bare callable, expected a torch.nn.Module.")
    return model


def _from_function(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"cannot import {name!r}: {error}. Expected package.module:function on the path.") from error
    try:
        model = target if isinstance(target, nn.Module) else target()
    except TypeError as error:
        raise ModelError(
            f"{name} gave no model: {error}. Expected package.module:function without arguments."
        ) from error
    if isinstance(model, nn.Module):
        return model.eval()
    if not callable(model):
        raise ModelError(f"{name} gave {type(model).__name__}, expected a torch.nn.Module or a callable.")
    return model  # type: ignore[no-any-return]
