"""``ddsmoothing certify`` and ``predict``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.executor import executing, executor_options
from ddsmoothing.cli.interrupts import advising
from ddsmoothing.cli.loading import PLAUSIBLE_SIGMA, add, data_options, load
from ddsmoothing.errors import InputError, SigmaError

if TYPE_CHECKING:
    from ddsmoothing.campaigns import SigmaPolicy
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset

RUN_OPTIONS = (
    *("model_id", "n0", "n", "n_max", "alpha", "bound", "randomized", "label_aware", "skip", "maximum", "seed"),
)
RECALLED = (  # what a continued run need not be told again; the seed is in the header itself
    *("model", "data", "split", "norm", "sigma", "lambda_", "alpha", "skip", "maximum", "num_classes", "no_labels"),
    *("precision", "channels_last", "compiled", "snap", "levels", "allow_large_sigma", "data_dependent", "sigma0"),
    *("sigma_min", "sigma_max", "sigma_grid", "n0", "n", "n_max", "radius", "radii", "label_aware", "bound"),
    *("randomized", "model_id", "shard"),
)


def noise_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that smooths at a given sigma."""
    options = [
        click.option("--sigma", type=float, help="Standard deviation of the noise, pixels in [0, 1]."),
        click.option("--lambda", "lambda_", type=float, help="Half-width of uniform noise (l1): sqrt(3) sigma."),
        click.option("--alpha", type=float, default=0.001, show_default=True, help="Failure probability an input."),
    ]
    return add(function, options)


@click.command(
    epilog="""\b
Examples:
  ddsmoothing certify --model fashion-mnist-cnn --data fashion-mnist-sample --sigma 0.5 --n 10000 --out runs/fixed
  ddsmoothing certify --model net.safetensors --data test.npz --data-dependent --skip 20 --max 500 --out runs/dds
  ddsmoothing certify --model my.nets:build --data test.npz --norm l1 --lambda 0.8 --out runs/l1
  ddsmoothing certify --model net.safetensors --data test.npz --sigma 0.5 --seed 1 --shard 2/8 --out runs/shard-2
  ddsmoothing certify --model net.safetensors --data test.npz --sigma 0.5 --executor ray --workers 8 --out runs/ray
  ddsmoothing certify --out runs/dds    (continues an interrupted run)"""
)
@data_options
@executor_options
@noise_options
@click.option("--data-dependent", is_flag=True, help="Choose sigma for each input by a forward-only search.")
@click.option("--sigmas", type=click.Path(path_type=Path), help="A sigma file made for this data set and model.")
@click.option("--sigma0", type=float, help="Where the search starts; default: the model's training sigma.")
@click.option("--sigma-min", type=float, help="Default: sigma0 / 4.")
@click.option("--sigma-max", type=float, help="Default: 4 sigma0.")
@click.option("--sigma-grid", help="Search this finite set only, such as 0.25,0.5,1.")
@click.option("--n0", type=int, help="Samples that choose the class (100); selects the sampler exact.")
@click.option("--n", type=int, help="Fresh samples that bound its probability (100,000); selects exact.")
@click.option("--n-max", type=int, help="At most so many for the planning sampler (100,000), the default one.")
@click.option("--radius", type=float, help="Only ask whether this radius is certified: the fewest samples.")
@click.option("--radii", help="The same for several, such as 0.25,0.5,1: a certified-accuracy table.")
@click.option("--label-aware", is_flag=True, help="Stop inputs whose pilot class is wrong.")
@click.option("--bound", type=click.Choice(["one-class", "two-class"]), default="one-class", show_default=True)
@click.option("--randomized", is_flag=True, help="Randomised bound: larger by about 1 %, depends on a coin.")
@click.option("--model-id", help="Names a model that has no hash (a bare callable).")
@click.option("--budget", help="Stop in order after so long, such as 90s, 30m or 8h; continue later.")
@click.option("--shard", help="Only the i-th of n parts, such as 2/8; needs --seed. See merge.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard curves of the progress.")
@click.option("--forecast", is_flag=True, help="Only print what it would cost, from a 2-second probe.")
@click.option("--no-preflight", is_flag=True, help="Skip the check of model and data before a new run.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder: new, or of the same run to continue it.")
@click.pass_context
def certify(context: click.Context, /, **options: Any) -> None:
    """Certify inputs of a data set into a run folder; repeat the command to continue an interrupted run.

    Sigma, lambda and radii are in pixels of [0, 1]. The certificates are of level `pointwise`: each holds for the
    classifier that uses that input's sigma everywhere.

    SIGINT and SIGTERM end a run in order, with exit code 75; what was counted is kept.
    """
    with advising(lambda: advice(options["out"])):
        _certify(context, options)


def advice(out: Path | None) -> str:
    """How to go on after an interruption."""
    from ddsmoothing.runs.store import finished_rows

    if out is None or not out.exists():
        return "nothing was kept; repeat the command."
    return f"{finished_rows(out)} inputs are finished in {out}; the same command continues it."


def _certify(context: click.Context, options: dict[str, Any]) -> None:
    from ddsmoothing.campaigns.policy import check_labels, subset_ids
    from ddsmoothing.plan import sampler_for

    if options["out"] is None and not options["forecast"]:
        raise InputError("expected --out, the run folder to write (or --forecast).")
    if options["out"] is not None:
        recall(context, options)
    radii = wanted_radii(options)
    seconds_of(options["budget"])  # what is wrong with it is said before anything is loaded
    smoothed, data = load(options)
    policy = sigma_policy(options, smoothed, data)
    ids = subset_ids(data, options["skip"], options["maximum"], shard_of(options["shard"]))
    sampler = sampler_for(options["n0"], options["n"], options["n_max"], radii)
    if options["forecast"]:
        from ddsmoothing.campaigns.forecast import forecast

        click.echo(forecast(smoothed, data, ids, policy, sampler, options["alpha"], options["bound"]).text())
        return
    policy.check(smoothed, len(ids))
    sampler.check(options["alpha"], options["bound"])
    check_labels(data, ids, smoothed.num_classes)
    if not options["no_preflight"] and not options["out"].exists():
        preflight(smoothed, data, ids, policy)
    _run(smoothed, data, policy, options, len(ids), policy.forwards + sampler.largest())


def _run(
    smoothed: SmoothedClassifier, data: Dataset, policy: SigmaPolicy, options: dict[str, Any], inputs: int, each: int
) -> None:
    """Certify so many inputs, of at most so many samples each, and show what came out."""
    from ddsmoothing.campaigns import certify_run
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.cli.results import print_table
    from ddsmoothing.runs.events import Scalars
    from ddsmoothing.runs.store import finished_rows

    with ExitStack() as stack:
        listeners = []
        if options["tensorboard"] is not None:
            listeners.append(stack.enter_context(closing(Scalars(options["tensorboard"]))))
        smoothed = stack.enter_context(executing(smoothed, options))
        left = inputs - finished_rows(options["out"])
        progress = stack.enter_context(SampleProgress(max(1, left * each), f"certifying {left} inputs"))
        run = certify_run(
            smoothed,
            data,
            policy,
            options["out"],
            model_name=options["model"],
            radii=wanted_radii(options),
            budget=seconds_of(options["budget"]),
            shard=shard_of(options["shard"]),
            command={key: options[key] for key in RECALLED},
            listeners=listeners,
            progress=progress,
            **{key: options[key] for key in RUN_OPTIONS},
        )
    if data.y is not None:
        print_table([run])
    click.echo(f"{len(run)} results in {run.path} (seed {run.header.seed})")
    if run.partial:
        click.echo(f"partial: {run.header.subset.size - len(run)} inputs left; the same command continues it.")


def preflight(smoothed: SmoothedClassifier, data: Dataset, ids: list[int], policy: SigmaPolicy) -> None:
    """Stop on what would waste hours, and say what looks odd."""
    import numpy as np

    from ddsmoothing.doctor import WARN, quick_check, stop_on_failure

    sigma = policy.sigma0 if policy.kind == "search" else float(np.median(np.asarray(policy.sigma, dtype=float)))
    checks = quick_check(smoothed, data, ids, sigma)
    for check in checks:
        if check.status == WARN:
            click.echo(f"{WARN}: {check.name}: {check.message}", err=True)
    stop_on_failure(checks)


def recall(context: click.Context, options: dict[str, Any]) -> None:
    """Take from the run in --out, if there is one, what the command line does not say."""
    from ddsmoothing import data, models
    from ddsmoothing.runs.store import HEADER, load_header

    if not (options["out"] / HEADER).exists():
        return
    header = load_header(options["out"])
    if header.sigma_policy == "file" and options["sigmas"] is None:
        raise InputError(f"the sigmas of {options['out']} are from a file; give it again with --sigmas.")
    parameters = {parameter.name: parameter for parameter in context.command.params}
    shipped = {"model": models.SHIPPED, "data": data.SHIPPED}
    for key, value in header.config.items():
        text = str(value)
        if key in shipped and text not in shipped[key]:
            if options[key] is None:
                where = f"the {key} of {options['out']} is {text!r}"
                raise InputError(f"{where}; give it again with --{key}, since names in files are not loaded.")
            continue
        if value is None:
            continue
        if key in RECALLED and context.get_parameter_source(key) is click.core.ParameterSource.DEFAULT:
            try:
                options[key] = parameters[key].type_cast_value(context, text)
            except click.UsageError as error:
                raise InputError(f"{options['out'] / HEADER}: {key} is {text}: {error.message}") from None


def wanted_radii(options: dict[str, Any]) -> list[float] | None:
    """The radii of --radius or --radii."""
    if options["radius"] is not None and options["radii"] is not None:
        raise InputError("expected one of --radius and --radii.")
    if options["radius"] is not None:
        return [options["radius"]]
    return None if options["radii"] is None else numbers(options["radii"], "--radii")


def shard_of(text: str | None) -> tuple[int, int] | None:
    """``2/8`` as a pair."""
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InputError(f"--shard is {text!r}, expected i/n such as 2/8.")
    return int(parts[0]), int(parts[1])


def seconds_of(text: str | None) -> float | None:
    """``90s``, ``30m``, ``8h`` or plain seconds."""
    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise InputError(f"--budget is {text!r}, expected a time such as 90s, 30m or 8h.")
    return value


@click.command(
    epilog="""\b
Example:
  ddsmoothing predict --model fashion-mnist-cnn --data fashion-mnist-sample --sigma 0.25 --max 20"""
)
@data_options
@noise_options
@click.option("--n", type=int, default=1000, show_default=True, help="Samples an input.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(**options: Any) -> None:
    """Answers of the smoothed classifier (-1: abstained). Nothing is said about robustness."""
    import json

    from ddsmoothing.campaigns.policy import check_labels, subset_ids
    from ddsmoothing.cli.progress import SampleProgress

    smoothed, data = load(options)
    ids = subset_ids(data, options["skip"], options["maximum"])
    check_labels(data, ids, smoothed.num_classes)
    x, y = data[ids]
    with SampleProgress(len(ids) * options["n"], f"predicting {len(ids)} inputs") as progress:
        result = smoothed.predict(
            x,
            fixed_sigma(options),
            n=options["n"],
            alpha=options["alpha"],
            seed=options["seed"],
            ids=ids,
            progress=progress,
        )
    if not options["as_json"]:
        click.echo("id\tlabel\tprediction")
    for i, label, answer in zip(ids, y.tolist(), result.prediction.tolist(), strict=True):
        label = None if data.y is None else label
        if options["as_json"]:
            click.echo(json.dumps({"id": i, "label": label, "prediction": answer}))
        else:
            click.echo(f"{i}\t{'-' if label is None else label}\t{answer}")


def check_plausible(sigma: float, allowed: bool) -> float:
    """Refuse a sigma that was meant for pixels in 0..255."""
    if sigma > PLAUSIBLE_SIGMA and not allowed:
        raise SigmaError(
            f"sigma {sigma:g} is very large for pixels in [0, 1]; if it was meant for 0..255, use {sigma / 255:.4g}. "
            "If not, add --allow-large-sigma."
        )
    return sigma


def fixed_sigma(options: dict[str, Any]) -> float:
    """The one sigma that --sigma or --lambda gives."""
    from ddsmoothing.noise import Uniform

    sigma, lambda_ = options["sigma"], options["lambda_"]
    if lambda_ is not None and options["norm"] != "l1":
        raise InputError("--lambda is the half-width of uniform noise, expected --norm l1 with it.")
    if (sigma is None) == (lambda_ is None):
        raise InputError("expected exactly one of --sigma S and --lambda L (l1 only).")
    return check_plausible(sigma if lambda_ is None else Uniform().sigma(lambda_), options["allow_large_sigma"])


def sigma_policy(options: dict[str, Any], smoothed: SmoothedClassifier, data: Dataset) -> SigmaPolicy:
    """Where the options say that sigma comes from."""
    from ddsmoothing.campaigns import SigmaPolicy
    from ddsmoothing.campaigns.policy import subset_ids
    from ddsmoothing.models import model_identity
    from ddsmoothing.sigma.files import load_sigmas

    fixed = options["sigma"] is not None or options["lambda_"] is not None
    if fixed + options["data_dependent"] + (options["sigmas"] is not None) != 1:
        raise InputError("expected exactly one of --sigma S (or --lambda L), --data-dependent and --sigmas FILE.")
    if fixed:
        return SigmaPolicy.fixed(fixed_sigma(options))
    if options["sigmas"] is not None:
        file = load_sigmas(options["sigmas"])
        file.check(data.fingerprint(), model_identity(smoothed.model, options["model_id"]), options["norm"])
        ids = subset_ids(data, options["skip"], options["maximum"], shard_of(options["shard"]))
        return SigmaPolicy.given(file.of(ids), hashlib.sha256(options["sigmas"].read_bytes()).hexdigest())
    grid = parse_grid(options["sigma_grid"], options["allow_large_sigma"])
    return SigmaPolicy.search(start_sigma(options, smoothed), options["sigma_min"], options["sigma_max"], grid)


def start_sigma(options: dict[str, Any], smoothed: SmoothedClassifier) -> float:
    """sigma0 as given, else what the model says it was trained with."""
    from ddsmoothing.models import spec_of

    sigma0 = options["sigma0"]
    if sigma0 is None:
        spec = spec_of(smoothed.model)
        sigma0 = None if spec is None else spec.sigma0
        if sigma0 is None:
            raise InputError("this model does not say what noise it was trained with; give --sigma0.")
    for value in (sigma0, options["sigma_min"], options["sigma_max"]):
        if value is not None:
            check_plausible(value, options["allow_large_sigma"])
    return float(sigma0)


def parse_grid(text: str | None, allowed: bool) -> list[float] | None:
    """The sigmas of --sigma-grid."""
    return None if text is None else [check_plausible(value, allowed) for value in numbers(text, "--sigma-grid")]


def numbers(text: str, option: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}, expected numbers such as 0.25,0.5,1.") from None
