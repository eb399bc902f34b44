"""``ddsmoothing offsets`` and ``pairs``: what a stateless classifier is fitted with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddsmoothing.cli.executor import executing, executor_options
from ddsmoothing.cli.loading import Command, add, data_options, load
from ddsmoothing.cli.parsing import check_plausible, fixed_sigma, numbers
from ddsmoothing.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ddsmoothing.claims import StatelessRule
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset
    from ddsmoothing.runs import OffsetsNote
    from ddsmoothing.sigma import SigmaPolicy
    from ddsmoothing.stateless import Figures, OffsetsFile
    from ddsmoothing.stateless.files import Fitted

FILE = click.Path(path_type=Path)
NEEDED = {  # options of each rule
    "cascade": ("rule_sigmas", "taus"),
    "reach": ("rule_sigmas", "gate_sigma", "gate_groups"),
    "dual": ("rule_sigmas", "gate_sigma", "gate_groups"),
}
RULES = tuple(NEEDED)
OF_RULES = tuple(dict.fromkeys(name for names in NEEDED.values() for name in names))
OTHERS = ("sigma", "lambda_", "sigmas", "data_dependent", "sigma0", "sigma_min", "sigma_max", "sigma_grid", "offsets")
RULE = "Route among sigmas, without a table; level stateless. With reach and dual experts have the --vote given."
Fit = TypeVar("Fit", bound="Fitted")


def fit_options(samples: str) -> Callable[[Command], Command]:
    """Options of every fit.

    Args:
        samples: what --samples counts.
    """
    options = [
        click.option("--favour-accuracy", type=float, default=1.0, show_default=True, help="Its weight against ACR."),
        click.option("--n", type=int, default=128, show_default=True, help="Samples an input and sigma, to fit on."),
        click.option(
            "--samples",
            type=int,
            default=1000,
            show_default=True,
            help=samples,
        ),
        click.option("--alpha", type=float, default=0.001, show_default=True, help="Of these certificates."),
        click.option("--model-id", help="Names a model that has no hash (a bare callable)."),
        click.option("--out", required=True, type=FILE, help="The file to write (JSON)."),
    ]
    return lambda function: add(function, options)


def offsets_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Class offsets of the classifier."""
    options = [
        click.option("--offsets", type=FILE, help="Class offsets fitted for this model; a pairwise vote with them."),
        click.option("--allow-seen", is_flag=True, help="Accept what was fitted on inputs of this run, and mark it."),
    ]
    return add(function, options)


@click.group()
def offsets() -> None:
    """Class offsets: a pairwise vote in which some classes have to win by more than others."""


@offsets.command(
    epilog="""\b
Examples:
  ddsmoothing offsets fit --model net.safetensors --data fashion-mnist:DIR --split train --sigma 1 --out offsets.json
  ddsmoothing certify --model net.safetensors --data fashion-mnist:DIR --sigma 1 --offsets offsets.json --out runs/o"""
)
@executor_options
@data_options
@click.option("--sigma", type=float, help="Standard deviation of the noise, pixels in [0, 1].")
@click.option("--lambda", "lambda_", type=float, help="Half-width of uniform noise (l1): sqrt(3) sigma.")
@fit_options("Of each certificate of the figures; 100 more choose its class.")
def fit(**options: Any) -> None:
    """Fit class offsets on inputs that no run will certify, such as the training split.

    A quarter of the inputs is held out; what the offsets do to them is shown beside the figures without offsets.
    """
    from ddsmoothing.stateless import fit_offsets

    found = fitted("offsets are", fit_offsets, options, sigma=fixed_sigma(options))
    _show(found)
    click.echo(f"offsets in {options['out']}")


@click.group()
def pairs() -> None:
    """Pair tables: one sigma for each pair of classes."""


@pairs.command(
    "fit",
    epilog="""\b
Examples:
  ddsmoothing pairs fit --model net.safetensors --data fashion-mnist:DIR --split train --sigmas 0.5,1 --out p.json
  ddsmoothing certify --model net.safetensors --data fashion-mnist:DIR --pair-sigmas p.json --n 10000 --out runs/p""",
)
@executor_options
@data_options
@click.option("--sigmas", required=True, help="The finite set, such as 0.5,0.7,1. Pixels in [0, 1].")
@click.option("--with-offsets", is_flag=True, help="Fit class offsets as well, for the table and each fixed sigma.")
@click.option("--n0", type=int, default=100, show_default=True, help="Samples at each sigma that choose the class.")
@fit_options("Forward passes of each certificate of the figures, those that choose its class included.")
def fit_table(**options: Any) -> None:
    """Fit one sigma for each pair of classes on inputs that no run will certify.

    The table stands beside every fixed sigma at equal total forward passes (--samples); a line says if it does not pay.
    """
    from ddsmoothing.stateless import fit_pairs

    sigmas = [check_plausible(sigma, options["allow_large_sigma"]) for sigma in numbers(options["sigmas"], "--sigmas")]
    chosen = {key: options[key] for key in ("with_offsets", "n0")}
    found = fitted("a table is", fit_pairs, options, sigmas=sigmas, **chosen)
    click.echo(f"{found.held_out} held-out inputs, {found.samples} forward passes each, {found.norm}")
    show_rows([("table", found.figures), *((f"sigma {one.sigma:g}", one.figures) for one in found.fixed)])
    if not found.pays:
        click.echo("this table does not pay: a fixed sigma has at least its mean radius and its accuracy.")
    click.echo(f"table in {options['out']}")


def fitted(
    what: str,
    fit: Callable[..., Fit],
    options: dict[str, Any],
    **chosen: Any,
) -> Fit:
    """Load model and data, fit, and write what was fitted.

    Args:
        chosen: what this fit alone is given.
    """
    from ddsmoothing.campaigns.subset import check_labels, subset_ids
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.models import model_identity
    from ddsmoothing.stateless import save_fit
    from ddsmoothing.stateless.counts import HELD_OUT

    check_folder(options["out"])
    smoothed, data = load(options)
    ids = subset_ids(data, options["skip"], options["maximum"])
    if data.y is None:
        raise InputError(f"{what} fitted to labels, and this data set has none.")
    check_labels(data, ids, smoothed.num_classes)
    identity = model_identity(smoothed.model, options["model_id"])
    x, y = data[ids]
    chosen |= {key: options[key] for key in ("favour_accuracy", "n", "samples", "alpha", "seed")}
    samples = (len(ids) - len(ids) // HELD_OUT) * options["n"] * len(set(chosen.get("sigmas", (None,))))
    with executing(smoothed, options) as placed, SampleProgress(samples, f"fitting on {len(ids)} inputs") as progress:
        found = fit(placed, x, y, ids=ids, progress=progress, **chosen)
    found = found.model_copy(update={"model": identity, "data": data.fingerprint()})
    save_fit(found, options["out"])
    return found


def check_folder(out: Path) -> None:
    """Refuse an output whose folder is not there, before anything is drawn."""
    if not out.absolute().parent.is_dir():
        raise DataError(f"the folder of --out {out} does not exist.")


def _show(found: OffsetsFile) -> None:
    """Both rows, and what became of every class."""
    from ddsmoothing.tables import share_text

    click.echo(
        f"{found.held_out} held-out inputs, {found.samples} samples each and those that choose the class, sigma "
        f"{found.sigma:g}, {found.norm}"
    )
    show_rows([("without", found.without), ("offsets", found.figures)])
    click.echo("class\toffset\taccuracy\tcertified\tanswered\t(without: accuracy\tcertified\tanswered)")
    names = ("accuracy_by_class", "certified_by_class", "answered_by_class")
    for c, beta in enumerate(found.offsets):
        shares = [getattr(figures, name)[c] for figures in (found.figures, found.without) for name in names]
        click.echo("\t".join([str(c), f"{beta:+.4f}", *(share_text(share, 3) for share in shares)]))
    gain, lost = found.figures.acr - found.without.acr, found.without.accuracy - found.figures.accuracy
    if gain <= 0.0 and lost >= 0.0:
        click.echo("these offsets do not pay: neither the mean radius nor accuracy is above that without them.")


def show_rows(rows: list[tuple[str, Figures]]) -> None:
    """Figures, one line each; ACR capped as in the fit, last the shares that are certified beyond each radius."""
    from ddsmoothing.bounds import floor_text
    from ddsmoothing.tables import share_text

    radii = rows[0][1].radii
    click.echo("\t".join(["", "ACR", "accuracy", "abstained", "forwards", *(f"R>{radius:g}" for radius in radii[1:])]))
    for name, one in rows:
        figures = [floor_text(one.acr, 3), share_text(one.accuracy, 3), share_text(one.abstained, 3, up=True)]
        shares = [share_text(share, 3) for share in one.certified[1:]]
        click.echo("\t".join([name, *figures, f"{one.forwards:.0f}", *shares]))


def with_offsets(
    smoothed: SmoothedClassifier, data: Dataset, ids: list[int], options: dict[str, Any]
) -> tuple[SmoothedClassifier, OffsetsNote | None]:
    """The classifier with the offsets of --offsets, if there are any, and where they come from.

    Raises: InputError where they belong to another model or were fitted on inputs of this run, unless that is allowed.
    """
    if options["offsets"] is None:
        return smoothed, None
    from ddsmoothing.stateless import load_offsets

    file, digest = load_offsets(options["offsets"])
    note = fitted_note(options["offsets"], file, digest, len(file.offsets), smoothed, data, ids, options)
    return smoothed.with_offsets(file.offsets), note


def stateless_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Rules that look at several sigmas."""
    options = [
        click.option("--pair-sigmas", type=FILE, help="A pair table fitted for this model; level stateless."),
        click.option("--rule", type=click.Choice(RULES), help=RULE),
        click.option("--rule-sigmas", help="Of the experts, such as 1,0.5: for a cascade in the order of asking."),
        click.option("--taus", help="By how much each expert of a cascade has to be sure, such as 0.3,0."),
        click.option("--no-reach", is_flag=True, help="The cascade as published, for comparison."),
        click.option("--gate-sigma", type=float, help="Of the gate before experts; another one than theirs."),
        click.option("--gate-groups", help="Which expert the gate picks by each class, such as 0,0,1,1 (from 0 on)."),
    ]
    return add(function, options)


def stateless_policy(
    smoothed: SmoothedClassifier, data: Dataset, ids: list[int], options: dict[str, Any]
) -> tuple[SigmaPolicy, OffsetsNote | None] | None:
    """The rule over several sigmas that the options ask for, and where it comes from; None where they ask for none.

    Raises: as ``with_offsets``.
    """
    if options["rule"] is not None:
        _alone(options, "a rule among sigmas", [*OTHERS, "pair_sigmas"])
        from ddsmoothing.sigma import SigmaPolicy

        return SigmaPolicy.stateless(_routing(smoothed, options)), None
    if given := _given(options, [*OF_RULES, "no_reach"]):
        raise InputError(f"{given[0]} belongs to a rule, expected --rule with it.")
    if options["pair_sigmas"] is None:
        return None
    from ddsmoothing.sigma import SigmaPolicy
    from ddsmoothing.stateless import load_pairs

    _alone(options, "a pair table", OTHERS)
    if smoothed.vote != "pairwise":
        raise InputError(f"a pair table has a pairwise vote, got --vote {smoothed.vote}; leave one of them out.")
    file, digest = load_pairs(options["pair_sigmas"])
    note = fitted_note(options["pair_sigmas"], file, digest, len(file.groups), smoothed, data, ids, options)
    return SigmaPolicy.stateless(file.table), note


def _alone(options: dict[str, Any], what: str, others: Sequence[str]) -> None:
    """Refuse options that do not go with a rule."""
    if given := _given(options, others):
        raise InputError(f"{what} has sigmas of its own and no {given[0]}; leave one of them out.")


def _given(options: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Of these options the ones that were given, a zero too, as they are written."""
    there = [name for name in names if options.get(name) is not None and options[name] is not False]
    return [f"--{name.strip('_').replace('_', '-')}" for name in there]


def _routing(smoothed: SmoothedClassifier, options: dict[str, Any]) -> StatelessRule:
    """The cascade or the gate that the options describe."""
    from ddsmoothing.claims import Cascade, Gated

    kind, needed = options["rule"], NEEDED[options["rule"]]
    for name in OF_RULES:
        if (options[name] is None) == (name in needed):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"--rule {kind} needs {option}." if name in needed else f"--rule {kind} has no {option}.")
    if options["no_reach"] and kind != "cascade":
        raise InputError(f"--rule {kind} has no --no-reach; dual is the rule without it.")
    sigmas = [
        check_plausible(sigma, options["allow_large_sigma"])
        for sigma in numbers(options["rule_sigmas"], "--rule-sigmas")
    ]
    vote = click.get_current_context().get_parameter_source("vote")
    if kind == "cascade" and smoothed.vote != Cascade.vote and vote is not click.core.ParameterSource.DEFAULT:
        raise InputError(f"--rule cascade has a plurality vote, got --vote {smoothed.vote}; leave one of them out.")
    same: dict[str, Any] = {"classes": smoothed.num_classes, "norm": smoothed.certificate.norm}
    if kind == "cascade":
        taus = tuple(numbers(options["taus"], "--taus"))
        return Cascade(sigmas=tuple(sigmas), taus=taus, reach=not options["no_reach"], **same)
    gate = check_plausible(options["gate_sigma"], options["allow_large_sigma"])
    groups = numbers(options["gate_groups"], "--gate-groups")
    if not all(group.is_integer() for group in groups):
        raise InputError(f"--gate-groups is {options['gate_groups']!r}, expected whole numbers such as 0,0,1,1.")
    experts = (smoothed.rule(),) * len(sigmas)
    return Gated(experts=experts, sigmas=(*sigmas, gate), groups=tuple(map(int, groups)), branches=kind, **same)


def fitted_note(
    path: Path | str,
    file: Fitted,
    digest: str,
    classes: int,
    smoothed: SmoothedClassifier,
    data: Dataset,
    ids: list[int],
    options: dict[str, Any],
) -> OffsetsNote:
    """Where what was fitted comes from; InputError as for ``with_offsets``."""
    from ddsmoothing.models import model_identity
    from ddsmoothing.runs import OffsetsNote

    identity = model_identity(smoothed.model, options.get("model_id"))
    file.check(identity, smoothed.certificate.norm, smoothed.num_classes, classes)
    seen = sum(file.seen(smoothed.prepare(data[ids[i : i + 64]][0]).sha256) for i in range(0, len(ids), 64))
    if seen and not options["allow_seen"]:
        raise InputError(
            f"{path} was fitted on {seen} of the {len(ids)} inputs of this run, which would flatter it; "
            "fit on others, or say --allow-seen to have that marked."
        )
    return OffsetsNote(sha256=digest, seen=seen > 0)
