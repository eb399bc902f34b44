"""``ddsmoothing certify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.again import KEY, continuing, given_options
from ddsmoothing.cli.executor import executing, executor_options
from ddsmoothing.cli.interrupts import advising
from ddsmoothing.cli.loading import add, data_options, load
from ddsmoothing.cli.parsing import seconds_of, shard_of, sigma_policy, wanted_radii
from ddsmoothing.cli.stateless import offsets_options, stateless_options, stateless_policy, with_offsets
from ddsmoothing.errors import InputError, RunError

if TYPE_CHECKING:
    from ddsmoothing.campaigns import CertifyRequest
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset
    from ddsmoothing.sigma import SigmaPolicy

PAPER = {"n0": 100, "n": 100_000, "vote": "plurality", "bound": "one-class"}
RECALLED = (  # what a continued run need not be told again; the seed is in the header itself
    *("model", "data", "split", "norm", "vote", "sigma", "lambda_", "alpha", "skip", "maximum"),
    *("num_classes", "no_labels"),
    *("precision", "channels_last", "compiled", "snap", "levels", "allow_large_sigma", "data_dependent", "sigma0"),
    *("sigma_min", "sigma_max", "sigma_grid", "n0", "n", "n_max", "radius", "radii", "label_aware", "bound"),
    *("randomized", "model_id", "shard", "units"),
    *("rule", "rule_sigmas", "taus", "no_reach", "gate_sigma", "gate_groups"),
)


def noise_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that smooths at a given sigma."""
    options = [
        click.option("--sigma", type=float, help="Standard deviation of the noise, in the units of the input."),
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
  ddsmoothing certify --model net.safetensors --data test.npz --pair-sigmas pairs.json --n 10000 --out runs/pairs
  ddsmoothing certify --model net.pt --data test.npz --rule cascade --rule-sigmas 1,0.5 --taus 0.3,0 --out runs/c
  ddsmoothing certify --out runs/dds    (continues an interrupted run)"""
)
@executor_options
@data_options
@noise_options
@click.option("--data-dependent", is_flag=True, help="Choose sigma for each input by a forward-only search.")
@click.option("--sigmas", type=click.Path(path_type=Path), help="A sigma file made for this data set and model.")
@click.option("--sigma0", type=float, help="Where the search starts; default: the model's training sigma.")
@click.option("--sigma-min", type=float, help="Default: sigma0 / 4.")
@click.option("--sigma-max", type=float, help="Default: 4 sigma0.")
@click.option("--sigma-grid", help="Search this finite set only, such as 0.25,0.5,1.")
@offsets_options
@stateless_options
@click.option("--n0", type=int, help="Samples that choose the class (100); selects the sampler exact.")
@click.option("--n", type=int, help="Fresh samples that bound its probability (100,000); selects exact.")
@click.option("--n-max", type=int, help="At most so many for the planning sampler (100,000), the default one.")
@click.option("--radius", type=float, help="Only ask whether this radius is certified: the fewest samples.")
@click.option("--radii", help="The same for several, such as 0.25,0.5,1: a certified-accuracy table.")
@click.option("--paper", is_flag=True, help="As in papers' tables: n0 100, n 100,000, plurality vote, one-class bound.")
@click.option("--units", help="Of sigma and radii, as results say them; default: pixels in [0, 1], or of the input.")
@click.option("--label-aware", is_flag=True, help="Stop inputs whose pilot class is wrong.")
@click.option("--bound", type=click.Choice(["one-class", "two-class"]), default="one-class", show_default=True)
@click.option("--randomized", is_flag=True, help="Randomised bound: larger by about 1 %, depends on a coin.")
@click.option("--model-id", help="Names a model that has no hash (a bare callable).")
@click.option("--budget", help="Stop in order after so long, such as 90s, 30m or 8h; continue later.")
@click.option("--shard", help="Only the i-th of n parts, such as 2/8; needs --seed. See merge.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard curves of the progress.")
@click.option("--forecast", is_flag=True, help="Only print what it would cost, from a few seconds of probing.")
@click.option("--fast", is_flag=True, help="Take the precision and layout that is fastest here; then part of the run.")
@click.option("--no-preflight", is_flag=True, help="Skip the check of model and data before a new run.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder: new, or of the same run to continue it.")
@click.pass_context
def certify(context: click.Context, /, **options: Any) -> None:
    """Certify inputs of a data set into a run folder; repeat the command to continue an interrupted run.

    Sigma, lambda and radii are in the units of the input: pixels in [0, 1] for images. The certificates are of level
    `pointwise`: each holds for the classifier that uses that input's sigma everywhere. Those of a rule over several
    sigmas (--pair-sigmas, --rule) are of level `stateless`: they hold for the classifier as it is deployed.

    SIGINT and SIGTERM end a run in order, with exit code 75; what was counted is kept.
    """
    options["words"] = given_options(context)
    options["allow_large_sigma"] |= options["units"] is not None  # then they are no pixels
    with advising(lambda: advice(options["out"])):
        _certify(context, options)


def as_in_papers(context: click.Context, options: dict[str, Any]) -> None:
    """What --paper stands for; refused beside options that say something else."""
    for key, value in PAPER.items():
        given = context.get_parameter_source(key) is not click.core.ParameterSource.DEFAULT
        if given and options[key] != value:
            raise InputError(
                f"--paper means {key.replace('_', '-')} {value}, got {options[key]}; leave one of them out."
            )
    if any(options[key] is not None for key in ("n_max", "radius", "radii")):
        raise InputError("--paper fixes the numbers of samples, expected no --n-max, --radius or --radii with it.")
    options.update(PAPER)


def check_fast(context: click.Context, options: dict[str, Any]) -> None:
    """Refuse --fast beside a form that is named, and for shards, which have to agree on one."""
    for key in ("precision", "channels_last"):
        if context.get_parameter_source(key) is not click.core.ParameterSource.DEFAULT:
            raise InputError(f"--fast chooses the form, got --{key.replace('_', '-')} too; leave one of them out.")
    if options["shard"] is not None:
        raise InputError("--fast may choose another form for each shard; give all of them the same --precision.")


def fastest(smoothed: SmoothedClassifier, data: Dataset, options: dict[str, Any]) -> SmoothedClassifier:
    """What --fast stands for: the form that is fastest here, said and put into the options."""
    from ddsmoothing.campaigns.fastest import fastest_form

    smoothed = fastest_form(smoothed, data[:1][0])
    options.update(precision=smoothed.precision, channels_last=smoothed.channels_last)
    form = f"--precision {smoothed.precision}" + (" --channels-last" if smoothed.channels_last else "")
    click.echo(f"fast: {form} is the fastest form here; it is what is certified and has to be deployed", err=True)
    return smoothed


def advice(out: Path | None) -> str:
    """How to go on after an interruption."""
    from ddsmoothing.runs.store import HEADER, finished_rows, load_header

    if out is None or not (out / HEADER).exists():
        return "nothing was kept; repeat the command."
    return f"{finished_rows(out)} inputs are finished in {out}; continue with:\n{continuing(out, load_header(out))}"


def _certify(context: click.Context, options: dict[str, Any]) -> None:
    from ddsmoothing.campaigns.subset import check_labels, subset_ids
    from ddsmoothing.runs.store import HEADER
    from ddsmoothing.stateless.certify import check_stateless

    if options["out"] is None and not options["forecast"]:
        raise InputError("expected --out, the run folder to write (or --forecast).")
    if options["out"] is not None:
        recall(context, options)
    if options["paper"]:
        as_in_papers(context, options)
    fast = options["fast"] and not (options["out"] is not None and (options["out"] / HEADER).exists())
    if fast:  # a run that is continued keeps its form
        check_fast(context, options)
    radii = wanted_radii(options)
    seconds_of(options["budget"])  # what is wrong with it is said before anything is loaded
    if options["forecast"]:
        click.echo("forecast: the model is asked for a few seconds; nothing is written", err=True)
    smoothed, data = load(options)
    if fast:
        smoothed = fastest(smoothed, data, options)
    ids = subset_ids(data, options["skip"], options["maximum"], shard_of(options["shard"]))
    chosen = stateless_policy(smoothed, data, ids, options)
    policy, note = chosen or (sigma_policy(options, smoothed, data), None)
    if chosen is None:
        smoothed, note = with_offsets(smoothed, data, ids, options)
    request = request_of(options, radii, policy)
    rule = smoothed.rule(request.bound)
    if options["forecast"]:
        from ddsmoothing.campaigns.forecast import forecast

        click.echo(forecast(smoothed, data, ids, policy, request.sampler, request.alpha, rule).text())
        return
    policy.check(smoothed, len(ids))
    if policy.rule is not None:
        check_stateless(smoothed, policy.rule, request.sampler, request.alpha, request.bound, request.randomized)
    check_labels(data, ids, smoothed.num_classes)
    if not options["no_preflight"] and not options["out"].exists():
        preflight(smoothed, data, ids, policy)
    options["note"] = note
    _run(smoothed, data, request, options, len(ids))


def request_of(options: dict[str, Any], radii: list[float] | None, policy: SigmaPolicy) -> CertifyRequest:
    """The run that options ask for."""
    from ddsmoothing.campaigns import CertifyRequest

    named = ("n0", "n", "n_max", "alpha", "bound", "randomized", "label_aware", "skip", "maximum", "seed", "units")
    plain = {key: options[key] for key in named}
    return CertifyRequest(policy, radii=radii, shard=shard_of(options["shard"]), **plain)


def _run(
    smoothed: SmoothedClassifier, data: Dataset, request: CertifyRequest, options: dict[str, Any], inputs: int
) -> None:
    """Certify so many inputs and show what came out."""
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
        total = max(1, left * request.forwards)
        progress = stack.enter_context(SampleProgress(total, f"certifying {left} inputs"))
        stack.enter_context(_saying(options["out"]))
        run = certify_run(
            smoothed,
            data,
            request,
            options["out"],
            model_name=options["model"],
            model_id=options["model_id"],
            budget=seconds_of(options["budget"]),
            command={key: options[key] for key in RECALLED} | {KEY: options["words"]},
            offsets=options["note"],
            listeners=listeners,
            progress=progress,
        )
    if data.y is not None:
        print_table([run])
    click.echo(f"{len(run)} results in {run.path} (seed {run.header.seed})")
    if run.partial:
        left = run.header.subset.size - len(run)
        click.echo(f"partial: {left} inputs left; continue with:\n{continuing(run.path, run.header)}")


@contextmanager
def _saying(out: Path) -> Iterator[None]:
    """Say how to continue a run that was stopped before it had a result."""
    from ddsmoothing.campaigns.certify import StoppedError
    from ddsmoothing.runs.store import load_header

    try:
        yield
    except StoppedError:
        with suppress(RunError):  # nothing was kept
            click.echo(f"continue with:\n{continuing(out, load_header(out))}", err=True)
        raise


def preflight(smoothed: SmoothedClassifier, data: Dataset, ids: list[int], policy: SigmaPolicy) -> None:
    """Stop on what would waste hours, and say what looks odd."""
    from ddsmoothing.doctor import WARN, quick_check, stop_on_failure

    checks = quick_check(smoothed, data, ids, policy.guess())
    for check in checks:
        if check.status == WARN:
            click.echo(f"{WARN}: {check.name}: {check.message}", err=True)
    stop_on_failure(checks)


def recall(context: click.Context, options: dict[str, Any]) -> None:
    """Take from the run in --out, if there is one, what the command line does not say."""
    from ddsmoothing import data, models
    from ddsmoothing.runs.store import HEADER, load_header, runs_in

    if not (options["out"] / HEADER).exists():
        if options["model"] is None and runs_in(options["out"]):
            load_header(options["out"])  # says so
        return
    header = load_header(options["out"])
    if header.sigma_policy == "file" and options["sigmas"] is None:
        raise InputError(f"the sigmas of {options['out']} are from a file; give it again with --sigmas.")
    rule = header.stateless if header.config.get("rule") is None and options["rule"] is None else None
    if rule is not None and rule.kind != "pairs":
        raise InputError(f"the {rule.words} of {options['out']} is from Python; continue it there, by certify_run.")
    if rule is not None and options["pair_sigmas"] is None:
        raise InputError(f"the pair table of {options['out']} is from a file; give it again with --pair-sigmas.")
    if header.offsets is not None and header.stateless is None and options["offsets"] is None:
        raise InputError(f"the class offsets of {options['out']} are from a file; give it again with --offsets.")
    parameters = {parameter.name: parameter for parameter in context.command.params}
    shipped = {"model": models.SHIPPED, "data": data.SHIPPED}
    for key, value in header.config.items():
        text = str(value)
        if key in shipped and text not in shipped[key]:
            if options[key] is None:
                where = f"the {key} of {options['out']} is {text!r}"
                how = continuing(options["out"], header)
                raise InputError(f"{where}; give it again with --{key}, since names in files are not loaded: {how}")
            continue
        if value is None:
            continue
        if key in RECALLED and context.get_parameter_source(key) is click.core.ParameterSource.DEFAULT:
            try:
                options[key] = parameters[key].type_cast_value(context, text)
            except click.UsageError as error:
                raise InputError(f"{options['out'] / HEADER}: {key} is {text}: {error.message}") from None
