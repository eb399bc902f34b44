"""The options that name a model and a data set, and what they load: the same for every command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.completing import DATA_NAME, MODEL_NAME
from ddsmoothing.errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset

PLAUSIBLE_SIGMA = 4.0
ONE_DEVICE = "auto, cpu, cuda, cuda:1, .."
DEFAULT_LEVELS = 255
MODEL = "Shipped name, FILE of weights, torchvision:NAME, timm:NAME, .., by-sigma:FILE.toml, or pkg.module:function."
DATA = "Shipped name, FILE.npz, FILE.csv:LABEL, or KIND:DIR: cifar10, imagenet, fashion-mnist, mnist, folder."
OF_MODEL = (
    *("arch", "num_classes", "normalize", "weights", "weights_key", "random_weights", "download", "output", "trust"),
)
OF_ENGINE = ("vote", "block_size", "precision", "channels_last", "compiled", "snap", "levels")


Command = Callable[..., Any]


def add(function: Command, options: list[Any]) -> Command:
    """A command with these options, shown in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def model_options(function: Command) -> Command:
    """What a model's name may leave open; options of every command that takes a model."""

    @functools.wraps(function)
    def named(*args: Any, **options: Any) -> Any:
        return function(*args, **options | {"model": denoised_name(options)})

    options = [
        click.option("--denoiser", help="In place of --model: FILE, KIND:FILE, diffusers:DIR, or pkg.module:function."),
        click.option("--classifier", help="What is behind the denoiser; as --model, whose options are then its own."),
        click.option("--resize", type=click.IntRange(min=1), help="Sides of a denoised image before the classifier."),
        click.option("--arch", help="Of a checkpoint that does not say: cifar-resnet110, timm:NAME, .."),
        click.option("--num-classes", type=int, help="K, where the model's file does not say; else it is probed."),
        click.option(
            "--normalize", default="auto", show_default=True, help="Of a checkpoint: center, none, cifar10, .."
        ),
        click.option("--weights", type=click.Path(path_type=Path), help="A file of them, for a named architecture."),
        click.option("--weights-key", help="Which weights of a file with several, such as state_dict_ema."),
        click.option("--model-output", "output", help="Where its logits are, if it returns more: logits, 0, .."),
        click.option("--trust", is_flag=True, help="Load a TorchScript file, which runs what is in it."),
        click.option("--random-weights", is_flag=True, help="Take a named architecture untrained."),
        click.option(
            "--download", is_flag=True, help="Fetch data or weights that are missing; else nothing is fetched."
        ),
    ]
    return add(named, options)


def denoised_name(options: dict[str, Any]) -> str | None:
    """What the model is called in results: as given, or the denoiser and the classifier behind it."""
    model, denoiser, classifier = (options[key] for key in ("model", "denoiser", "classifier"))
    if denoiser is None and classifier is None:
        if options["resize"] is not None:
            raise InputError("--resize is of denoised images, expected --denoiser and --classifier with it.")
        return str(model) if model is not None else None
    if denoiser is None or classifier is None or model is not None:
        raise InputError("expected --model, or --denoiser and --classifier, which are one model together.")
    return f"{denoiser} > {classifier}"


def engine_options(function: Command) -> Command:
    """How a model is run."""
    options = [
        click.option("--block-size", type=int, help="Rows of one forward pass; default: found by a short probe."),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True),
        click.option("--channels-last", is_flag=True, help="Run the model in this memory format."),
        click.option("--compile", "compiled", is_flag=True, help="Run the model by torch.compile."),
        device_option,
    ]
    return add(function, options)


def device_option(function: Command) -> Command:
    """Where the model runs; executor options add that it may be several GPUs."""
    return add(function, [click.option("--device", default="auto", show_default=True, help=ONE_DEVICE)])


def vote_option(function: Command) -> Command:
    """Which smoothed classifier is meant."""
    text = "pairwise: the class that beats every other one; plurality: the class given most often."
    known = click.Choice(["pairwise", "plurality"])
    return add(function, [click.option("--vote", type=known, default="pairwise", show_default=True, help=text)])


def data_options(function: Command) -> Command:
    """Options of every command that takes a model and a data set."""
    options = [
        click.option("--model", type=MODEL_NAME, help=MODEL),
        model_options,
        click.option("--data", type=DATA_NAME, help=DATA),
        click.option("--split", default="test", show_default=True, help="test or train."),
        click.option("--norm", type=click.Choice(["l2", "l1"]), default="l2", show_default=True),
        click.option("--skip", type=int, default=1, show_default=True, help="Take every so many-th input."),
        click.option("--max", "maximum", type=int, help="At most so many inputs."),
        click.option("--no-labels", is_flag=True, help="Accept data without labels."),
        click.option("--seed", type=int, help="Of the noise; default: from the operating system, and recorded."),
        vote_option,
        engine_options,
        click.option("--snap", is_flag=True, help="Move inputs to the grid first; radii lose the distance."),
        click.option("--levels", type=int, help="The grid is X/LEVELS: 100, ..; default 255, 65535 for 16-bit data."),
        click.option("--allow-large-sigma", is_flag=True, help=f"Accept a sigma above {PLAUSIBLE_SIGMA:g}."),
    ]
    return add(function, options)


def load(options: dict[str, Any]) -> tuple[SmoothedClassifier, Dataset]:
    """The smoothed classifier and the data set that the options name."""
    from ddsmoothing.data import load_data
    from ddsmoothing.data.dataset import LEVELS

    for key in ("model", "data"):
        if not options[key]:
            raise InputError(f"expected --{key}; see --help for what may stand there.")
    download = options.get("download", False)
    data = load_data(
        options["data"],
        split=options["split"],
        labels=not options["no_labels"],
        download=download,
        any_range=options.get("levels") not in (None, DEFAULT_LEVELS),
    )
    if options.get("levels") is None:
        options["levels"] = LEVELS.get(data.x.dtype, DEFAULT_LEVELS)
    return load_smoothed(options, data[:1][0]), data


def load_base(options: dict[str, Any], x: torch.Tensor) -> Any:
    """The base classifier that the options name, for inputs like x ``(B, ...)``, on its device."""
    import torch

    from ddsmoothing.devices import named_device
    from ddsmoothing.models import DenoisedClassifier, load_denoiser, load_model

    if not options["model"]:
        raise InputError("expected --model, or --denoiser and --classifier; see --help for what may stand there.")
    asked = {key: options[key] for key in OF_MODEL if key in options}
    shape, denoiser = tuple(x.shape[1:]), options.get("denoiser")
    model = load_model(options["classifier" if denoiser else "model"], input_shape=shape, **asked)
    if denoiser:
        if not isinstance(model, torch.nn.Module):
            raise InputError(f"--classifier {options['classifier']} is a bare callable, expected a torch.nn.Module.")
        model = DenoisedClassifier(load_denoiser(denoiser, input_shape=shape), model, options["resize"]).eval()
    if isinstance(model, torch.nn.Module):
        model.to(named_device(options["device"]))
    return model


def load_smoothed(options: dict[str, Any], x: torch.Tensor) -> SmoothedClassifier:
    """The smoothed classifier that the options name, for inputs like x ``(B, ...)``."""
    import torch

    from ddsmoothing.certificate import certificate_for
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.devices import named_device
    from ddsmoothing.models import probe_classes

    model, device = load_base(options, x), named_device(options["device"])
    sample = x[:1].float() / 255 if x.dtype == torch.uint8 else x[:1]
    classes = options["num_classes"] or probe_classes(model, sample.to(device))
    engine = {key: options[key] for key in OF_ENGINE if key in options}
    return SmoothedClassifier(model, certificate_for(options["norm"]), num_classes=classes, **engine)


def points_of(run: Path, options: dict[str, Any]) -> Callable[[int], NDArray[Any]] | None:
    """Inputs of the run's data set as flat stored numbers, if it is given or shipped; else distances stay unchecked."""
    import numpy as np

    from ddsmoothing.data import SHIPPED, load_data
    from ddsmoothing.runs.store import load_header

    header = load_header(run)
    name = options["data"] or (header.data.name if header.data.name in SHIPPED else None)
    if name is None:
        return None
    data = load_data(name, split=header.data.split, download=options.get("download", False))
    if data.fingerprint() != header.data.model_dump():
        raise InputError(f"{run} is not of this data set: {header.data.name}, {header.data.length} inputs.")
    return lambda i: np.asarray(data.x[i]).ravel()
