"""``ddsmoothing train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ddsmoothing.cli.completing import ARCHITECTURE, CHOICES, DATA_NAME, MODEL_NAME, PRESET
from ddsmoothing.cli.interrupts import INTERRUPTED, asked_to_stop
from ddsmoothing.cli.loading import add
from ddsmoothing.cli.parsing import numbers

if TYPE_CHECKING:
    from ddsmoothing.data import Dataset
    from ddsmoothing.training import TrainConfig, Trained

FILE = click.Path(path_type=Path)
PLACES: Final = {  # option: where it stands in the configuration
    **{name: name for name in ("data", "model", "num_classes", "normalize", "augmentation", "objective", "copies")},
    **{name: name for name in ("maximum", "epochs", "batch", "lr", "momentum", "weight_decay", "schedule", "warmup")},
    **{name: name for name in ("precision", "validation", "keep", "seed", "init", "init_optimizer", "sigma_init")},
    **{"sigma": "sigma", "step_epochs": "step_epochs", "step_factor": "step_factor", "nesterov": "nesterov"},
    **{"epsilon": "smoothadv.epsilon", "attack_steps": "smoothadv.steps", "attack_warmup": "smoothadv.warmup"},
    **{"macer_weight": "macer.weight", "macer_gamma": "macer.gamma", "macer_beta": "macer.beta"},
    **{"switch_epoch": "data_dependent.switch_epoch", "sigma_steps": "data_dependent.steps"},
    **{"sigma_step": "data_dependent.step", "sigma_samples": "data_dependent.samples"},
    **{"sigma_min": "data_dependent.sigma_min", "sigma_max": "data_dependent.sigma_max"},
    **{"sigma0_test": "data_dependent.sigma0_test", "sigma_steps_test": "data_dependent.steps_test"},
    **{name: name for name in ("condition", "optimizer", "recompute_batchnorm", "predictions", "teacher", "freeze")},
    **{"denoiser": "denoiser", "resize": "resize"},
    **{"soft_targets": "soft_targets", "consistency_weight": "consistency.weight"},
    **{"catrs_weight": "catrs.weight", "confidence": "catrs.confidence"},
    **{"sigma_steps_after": "data_dependent.steps_after", "temperature": "selector.temperature"},
}


def _what_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The model, the data and where a run starts."""
    options = [
        click.option(
            "--preset",
            type=PRESET,
            help="Hyper-parameters of a paper, such as cifar10-macer-dds; options override them.",
        ),
        click.option("--config", "file", type=FILE, help="A TOML file of options; overrides the preset."),
        click.option("--set", "settings", multiple=True, help="NAME=VALUE of any option, such as macer.beta=8."),
        click.option("--data", type=DATA_NAME, help="Such as fashion-mnist:DIR; its training split is used."),
        click.option("--model", type=ARCHITECTURE, help="An architecture such as small-cnn, or pkg.module:function."),
        click.option("--num-classes", type=int, help="K; default: from the labels."),
        click.option("--normalize", help="Inside the model: auto, center, none, or a data set's name."),
        click.option(
            "--condition",
            type=CHOICES["condition"],
            help="Tell the network sigma: channel (one more input channel) or film.",
        ),
        click.option("--augmentation", help="By name, such as cifar10 or imagenet."),
        click.option("--max", "maximum", type=int, help="Only the first so many training samples."),
        click.option("--init", help="Start from these weights: a checkpoint or model file."),
        click.option("--init-optimizer", is_flag=True, default=None, help="With the optimizer's state in that file."),
        click.option("--sigma-init", help="Start from the sigmas of this file, of the training or test split."),
        click.option("--seed", type=int, help="Of everything random; default: from the operating system, recorded."),
    ]
    return add(function, options)


def _objective_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option(
            "--objective",
            type=CHOICES["objective"],
            help="gaussian, smoothadv, macer, consistency, catrs, selector or denoiser.  [default: gaussian]",
        ),
        click.option("--sigma", help="Noise, pixels in [0, 1]; 0.12,1.0: log-uniform between.  [default: 0.25]"),
        click.option("--copies", type=int, help="Noisy copies of each input.  [default: 1]"),
        click.option("--epsilon", type=float, help="SmoothAdv: L2 radius of the attack.  [default: 0.25]"),
        click.option("--attack-steps", type=int, help="SmoothAdv: gradient steps.  [default: 2]"),
        click.option("--attack-warmup", type=int, help="SmoothAdv: epochs until full epsilon.  [default: 1]"),
        click.option("--macer-weight", type=float, help="MACER: lambda.  [default: 12]"),
        click.option("--macer-gamma", type=float, help="MACER: the hinge.  [default: 8]"),
        click.option("--macer-beta", type=float, help="MACER: inverse temperature.  [default: 16]"),
        click.option("--consistency-weight", type=float, help="Consistency: lambda.  [default: 10]"),
        click.option("--catrs-weight", type=float, help="CAT-RS: lambda / sigma.  [default: 2]"),
        click.option("--predictions", help="CAT-RS, selector: a file that `ddsmoothing predictions` made."),
        click.option("--temperature", type=float, help="Selector: of the softmax of radii.  [default: 0.1]"),
        click.option(
            "--teacher", type=MODEL_NAME, help="CAT-RS: a baseline model, asked on the way at each sample's sigma."
        ),
        click.option(
            "--confidence",
            type=CHOICES["confidence"],
            help="CAT-RS: baseline, or own: the network's votes so far.  [default: baseline]",
        ),
        click.option("--denoiser", help="Before the model: FILE, KIND:FILE, diffusers:DIR, or pkg.module:function."),
        click.option("--resize", type=int, help="Sides of a denoised image before the classifier."),
        click.option(
            "--freeze",
            type=CHOICES["freeze"],
            help="Leave this part of a denoised classifier as it is: denoiser or classifier.",
        ),
        click.option("--soft-targets", is_flag=True, default=None, help="Train to what the frozen classifier says."),
    ]
    return add(function, options)


def _sigma_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--data-dependent", is_flag=True, help="Move each sample's sigma; the options below imply it."),
        click.option("--switch-epoch", type=int, help="Sigma moves from this epoch on.  [default: 0]"),
        click.option("--sigma-steps", type=int, help="Ascent steps for each batch.  [default: 1]"),
        click.option("--sigma-step", type=float, help="Their length.  [default: 0.0001]"),
        click.option("--sigma-samples", type=int, help="Noisy copies in each.  [default: 1]"),
        click.option("--sigma-min", type=float, help="Default: sigma / 4."),
        click.option("--sigma-max", type=float, help="Default: 4 sigma."),
        click.option("--sigma0-test", type=float, help="Where held-out and test sigmas start; default: sigma."),
        click.option("--sigma-steps-test", type=int, help="Ascent steps at each validation.  [default: 0]"),
        click.option("--sigma-steps-after", type=int, help="Passes over the test split at the end.  [default: 0]"),
    ]
    return add(function, options)


def _loop_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--epochs", type=int, help="[default: 90]"),
        click.option("--batch", type=int, help="Of all processes together.  [default: 256]"),
        click.option("--optimizer", type=CHOICES["optimizer"], help="sgd or adamw.  [default: sgd]"),
        click.option("--lr", type=float, help="[default: 0.1]"),
        click.option("--momentum", type=float, help="[default: 0.9]"),
        click.option("--nesterov", is_flag=True, default=None, help="Nesterov's momentum; of sgd."),
        click.option("--weight-decay", type=float, help="[default: 0.0001]"),
        click.option("--schedule", type=CHOICES["schedule"], help="step, cosine or constant.  [default: step]"),
        click.option("--step-epochs", type=int, help="[default: 30]"),
        click.option("--step-factor", type=float, help="[default: 0.1]"),
        click.option("--warmup", type=float, help="Epochs of growing learning rate.  [default: 0]"),
        click.option("--precision", type=CHOICES["precision"], help="fp32, or bf16 or fp16 autocast.  [default: fp32]"),
        click.option(
            "--recompute-batchnorm", is_flag=True, default=None, help="Take BatchNorm's statistics anew at the end."
        ),
        click.option("--validation", type=float, help="Share of the training split held out.  [default: 0.02]"),
        click.option(
            "--keep", type=CHOICES["keep"], help="Model and sigmas of the last or the best epoch.  [default: last]"
        ),
    ]
    return add(function, options)


@click.command(
    epilog="""\b
Examples:
  ddsmoothing train --data fashion-mnist:DIR --model small-cnn --sigma 0.25 --epochs 10 --out runs/net
  ddsmoothing train --data fashion-mnist:DIR --model small-cnn --objective smoothadv --data-dependent --out runs/adv
  ddsmoothing train --data fashion-mnist:DIR --model stride-cnn --condition film --sigma 0.12,1.0 --out runs/told
  ddsmoothing train --preset cifar10-macer-dds --data cifar10:DIR --sigma 0.5 --set macer.weight=4 --out runs/macer
  ddsmoothing train --preset fashion-mnist-selector --data fashion-mnist:DIR --predictions radii --out runs/gate
  torchrun --nproc-per-node 4 --no-python ddsmoothing train --preset imagenet-gaussian --out runs/rs"""
)
@_what_options
@_objective_options
@_sigma_options
@_loop_options
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Threads that read data.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too.")
@click.option("--download", is_flag=True, help="Fetch data that are missing; else nothing is fetched.")
@click.option("--no-preflight", is_flag=True, help="Skip the check of model and data before a new run.")
@click.option("--out", required=True, type=FILE, help="Folder: new, or of the same run to continue it.")
def train(
    preset: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    data_dependent: bool,
    download: bool,
    out: Path,
    **options: Any,
) -> int:
    """Train a base classifier under noise: one loop, an objective, one sigma or a sigma for each sample.

    Every epoch is saved; the same command continues a run that was interrupted (exit code 75), and on a CPU the result
    is the same to the last bit. Validation uses a part of the training split, never the test split.
    """
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.data import load_data
    from ddsmoothing.training import resolve
    from ddsmoothing.training.options import setting
    from ddsmoothing.training.trainer import train as run

    given: dict[str, Any] = {"data_dependent": {}} if data_dependent else {}
    for text in settings:
        name, value = setting(text)
        given[name] = value
    if options["sigma"] is not None:
        values = numbers(options["sigma"], "--sigma")
        options["sigma"] = values[0] if len(values) == 1 else values
    given |= {place: options[name] for name, place in PLACES.items() if options[name] is not None}
    config = resolve(preset=preset, file=file, settings=given)
    data = load_data(config.data, split="train", download=download)
    test = load_data(config.data, split="test", download=download) if config.passes else None
    if not options["no_preflight"] and not out.exists():
        preflight(config, data, out)
    how = {key: options[key] for key in ("device", "workers", "tensorboard")}
    with asked_to_stop() as stop, SampleProgress(_left(config, data, test, out), "training", "inputs") as progress:

        def on_epoch(record: dict[str, Any]) -> None:
            progress.say(epoch_line(record, config.epochs))

        done = run(config, out, data=data, test=test, progress=progress, on_epoch=on_epoch, stop=stop, **how)
    report(done)
    return 0 if done.finished else INTERRUPTED


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """What an epoch came to: loss, accuracies or PSNR, quantiles of sigma, time left."""
    parts = [f"epoch {record['epoch'] + 1}/{epochs}: loss {record['loss']:.4g}"]
    names = {"accuracy": "train", "validation_accuracy": "noisy", "validation_clean_accuracy": "clean"}
    parts += [f"{name} {100 * record[key]:.1f} %" for key, name in names.items() if record[key] is not None]
    psnr = {key.rpartition("_")[2]: value for key, value in record.items() if key.startswith("validation_psnr_")}
    if psnr:
        parts.append("PSNR " + ", ".join(f"{value:.1f} dB at {sigma}" for sigma, value in psnr.items()))
    quantiles = [record[key] for key in ("sigma_05", "sigma_50", "sigma_95")]
    parts.append(f"sigma {' / '.join(f'{value:.3g}' for value in quantiles)}")
    left = record["seconds"] * (epochs - record["epoch"] - 1)
    return ", ".join(parts) + (f", {left:.0f} s left" if left else "")


def preflight(config: TrainConfig, data: Dataset, out: Path) -> None:
    """Stop on what would waste hours: a model that is no function or does not take the data, a folder not writable."""
    import torch

    from ddsmoothing.certificate import L2Certificate
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.counting.engine import at_sigma
    from ddsmoothing.doctor import FAIL, INPUTS, WARN, stop_on_failure
    from ddsmoothing.doctor.machine import machine_checks
    from ddsmoothing.doctor.model import input_checks, model_checks
    from ddsmoothing.training.init import classes_of, new_model

    classes = classes_of(config, data)
    if config.objective == "denoiser":  # no classifier
        stop_on_failure(list(machine_checks(out)))
        return
    x, _ = data[list(range(0, len(data), max(1, len(data) // INPUTS)))[:INPUTS]]
    model, _ = new_model(config, 0, classes, tuple(x.shape[1:]))
    told = at_sigma(model.eval(), torch.tensor([config.sigma_start]))  # the model itself, unless it takes sigma
    smoothed = SmoothedClassifier(told, L2Certificate(), num_classes=classes)
    checks = [*machine_checks(out), *model_checks(smoothed, x)]
    if not any(check.status == FAIL for check in checks):
        checks += input_checks(smoothed, x)
    for check in checks:
        if check.status == WARN and not (check.name == "BatchNorm" and config.init is None):
            click.echo(f"{WARN}: {check.name}: {check.message}", err=True)
    stop_on_failure(checks)


def _left(config: TrainConfig, data: Dataset, test: Dataset | None, out: Path) -> int:
    """Samples still to be trained on, and those of the passes over the test split."""
    from ddsmoothing.training.checkpoint import load_checkpoint
    from ddsmoothing.training.loop import CHECKPOINT

    total = config.epochs * config.samples(len(data)) + (0 if test is None else config.passes * len(test))
    if (out / CHECKPOINT).exists():
        position = load_checkpoint(out / CHECKPOINT).position
        total -= position.epoch * config.samples(len(data)) + position.step * config.batch
    return max(1, total)


def report(done: Trained) -> None:
    """What a run has come to, and the command to run next."""
    from ddsmoothing.models import spec_of
    from ddsmoothing.training.trainer import MODEL

    if not done.metrics:
        return  # another process of torchrun reports
    last = done.metrics[-1]
    line = epoch_line(last, done.config.epochs).partition(": ")[2]
    click.echo(f"{done.path}: {len(done.metrics)} epochs, {line} (seed {done.config.seed})")
    if not done.finished:
        click.echo("stopped; the same command continues it.")
        return
    spec, config = spec_of(done.model), done.config
    if config.denoiser is None and (spec is None or config.objective in ("denoiser", "selector")):
        return
    start = config.sigma_start if spec is None else spec.sigma0
    places = f"--model {done.path / MODEL}" if config.denoiser is None else denoised_places(done)
    many = config.data_dependent is not None or isinstance(config.sigma, tuple)
    sigma = f"--data-dependent --sigma0 {start:.3g}" if many else f"--sigma {config.sigma:g}"
    click.echo(f"next: ddsmoothing certify {places} --data {config.data} {sigma} --skip 20 --out RUN")


def denoised_places(done: Trained) -> str:
    """The options that name the denoiser and the classifier: the trained one of the two has a file in the run."""
    parts = {"denoiser": done.config.denoiser, "classifier": done.config.init or done.config.model}
    for name in parts:
        if (file := done.path / f"{name}.safetensors").exists():
            parts[name] = str(file)
    size = "" if done.config.resize is None else f" --resize {done.config.resize}"
    return " ".join(f"--{name} {place}" for name, place in parts.items()) + size
