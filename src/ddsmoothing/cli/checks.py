"""``ddsmoothing verify``, ``doctor`` and ``attack``: what tries to find fault with a run, a model, a certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.completing import DATA_NAME, MODEL_NAME, RUN_FOLDER
from ddsmoothing.cli.executor import executing, executor_options
from ddsmoothing.cli.interrupts import advising
from ddsmoothing.cli.loading import DATA, MODEL, OF_ENGINE, device_option, load, model_options, points_of
from ddsmoothing.errors import InputError, printable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ddsmoothing.campaigns.attack import AttackReport
    from ddsmoothing.campaigns.resample import Redrawn
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset
    from ddsmoothing.doctor import Check
    from ddsmoothing.runs import Run
    from ddsmoothing.verify import Verification

SHOWN = 20  # findings and violations in a text
RUN = click.argument("run", type=RUN_FOLDER)
JSON = click.option("--json", "as_json", is_flag=True, help="One object.")
MARKS = {"ok": "ok  ", "note": "    ", "warn": "WARN", "fail": "FAIL"}


def _place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the model and the data of a run are now."""
    for option in (
        device_option,
        click.option("--data", type=DATA_NAME, help="The run's data set; needed unless it is a shipped one."),
        model_options,
        click.option("--model", type=MODEL_NAME, help="The run's model; needed unless it is a shipped one."),
    ):
        function = option(function)
    return function


@click.command(
    epilog="""\b
Examples:
  ddsmoothing verify runs/dds
  ddsmoothing verify runs/dds --resample 5 --model net.safetensors --data test.npz"""
)
@RUN
@click.option("--resample", type=click.IntRange(min=1), help="Draw so many inputs again and compare their counts.")
@click.option("--store", type=click.Path(path_type=Path), help="The memory's file, for a run of level memory.")
@_place_options
@JSON
def verify(run: Path, resample: int | None, store: Path | None, as_json: bool, **options: Any) -> int:
    """Recompute every bound and radius of a run from its counts, on an independent path.

    Exit code 1 if anything does not hold; the row is named. See docs/verification.md for what this proves.
    """
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.runs import load_run
    from ddsmoothing.verify import verify_run

    found = verify_run(run, store=store, point=None if store is None else points_of(run, options))
    drawn: list[Redrawn] = []
    if resample is not None:
        from ddsmoothing.campaigns.resample import resample_run

        loaded = load_run(run)
        smoothed, dataset = _again(loaded, options)
        with SampleProgress(
            resample * max(row.samples for row in loaded.rows), f"drawing {resample} again"
        ) as progress:
            drawn = resample_run(loaded, smoothed, dataset, resample, progress=progress)
    (_show_json if as_json else _show_verification)(found, drawn)
    return 0 if found.ok and not any(one.message for one in drawn) else 1


def _show_json(found: Verification, drawn: list[Redrawn]) -> None:
    from dataclasses import asdict

    value = {
        "run": str(found.path),
        "ok": found.ok and not any(one.message for one in drawn),
        "rows": found.rows,
        "inputs_of": found.d,
        "unchecked": found.unchecked,
        "distances_unchecked": found.far_unchecked,
        "coins_unchecked": found.coins_unchecked,
        "memory_given": not found.alone,
        "findings": [asdict(finding) for finding in found.findings],
        "resampled": [asdict(one) for one in drawn],
    }
    click.echo(json.dumps(value, indent=2))


def _show_verification(found: Verification, drawn: list[Redrawn]) -> None:
    for finding in found.findings[:SHOWN]:
        click.echo(printable(str(finding)))
    if len(found.findings) > SHOWN:
        click.echo(f".. and {len(found.findings) - SHOWN} more")
    for one in drawn:
        if one.message:
            click.echo(f"input {one.id}: {one.message}")
    bad = len({f.line for f in found.findings if f.line is not None})
    rest = max(found.unchecked, found.far_unchecked, found.coins_unchecked)
    if found.ok and rest:
        click.echo(f"{found.rows - rest} of {found.rows} rows: every bound, class and radius follows from its counts.")
    elif found.ok:
        click.echo(f"{found.rows} rows: every bound, class and radius follows from its counts.")
    else:
        click.echo(f"{found.rows} rows, {bad} with findings; {len(found.findings)} findings in all.")
    if found.tv_unchecked:
        click.echo(
            f"tv of {found.tv_unchecked} rows not recomputed: their grid has too many levels for so many sigmas."
        )
    if found.unchecked:
        click.echo(f"{found.unchecked} rows not checked: a memory's file answered them; give it with --store.")
    if found.alone:
        click.echo("attempts, their alpha and regions not checked beside the memory's file; give it with --store.")
    if found.far_unchecked:
        click.echo(f"{found.far_unchecked} rows not checked: they lie in regions; give the data set with --data.")
    if found.coins_unchecked:
        click.echo(f"{found.coins_unchecked} rows not checked: coins of another run bound the regions that answered.")
    if drawn:
        same = sum(one.message is None for one in drawn)
        click.echo(f"{same} of {len(drawn)} inputs drawn again have the same counts.")


def _again(run: Run, options: dict[str, Any]) -> tuple[SmoothedClassifier, Dataset]:
    """The smoothed classifier and data of a run. Names that a file holds are loaded only if they are shipped ones."""
    from ddsmoothing import data as data_module
    from ddsmoothing import models

    header = run.header
    names = {"model": (header.model.name, models.SHIPPED), "data": (header.data.name, data_module.SHIPPED)}
    for key, (stored, shipped) in names.items():
        if options[key] is None and stored not in shipped:
            raise InputError(f"the run's {key} was {stored!r}; give --{key}, since names in files are not loaded.")
        options = options | {key: options[key] or stored}
    engine = {key: getattr(header, key) for key in OF_ENGINE}
    same = {"split": header.data.split, "norm": header.norm, "num_classes": header.num_classes, "no_labels": True}
    smoothed, found = load(options | same | engine)
    return smoothed.with_offsets(header.rule.offsets), found


@click.command(
    epilog="""\b
Examples:
  ddsmoothing doctor --model net.safetensors --data test.npz --sigma 0.25 --n 10000
  ddsmoothing doctor --model checkpoint.pth.tar --normalize center --data cifar10:DIR --sigma 0.25
  ddsmoothing doctor --model timm:resnet50 --download --data imagenet:DIR --sigma 0.25"""
)
@click.option("--model", type=MODEL_NAME, help=MODEL)
@model_options
@click.option("--data", required=True, type=DATA_NAME, help=DATA)
@click.option("--split", default="test", show_default=True, help="test or train.")
@click.option("--norm", type=click.Choice(["l2", "l1"]), default="l2", show_default=True)
@click.option("--sigma", type=float, help="Default: the model's training sigma, if it says.")
@click.option("--n", type=int, default=100_000, show_default=True, help="Samples an input, to be held against alpha.")
@click.option("--alpha", type=float, default=0.001, show_default=True, help="Failure probability an input.")
@click.option("--bound", type=click.Choice(["one-class", "two-class"]), default="one-class", show_default=True)
@click.option("--no-labels", is_flag=True, help="Accept data without labels.")
@device_option
@click.option("--out", type=click.Path(path_type=Path), help="Where results will go.")
@JSON
def doctor(**options: Any) -> int:
    """Look for what would waste hours: model, data, numbers and machine, on one page.

    Exit code 1 if something would make certification worthless.
    """
    from ddsmoothing.doctor import FAIL, examine
    from ddsmoothing.inputs import check_sigma
    from ddsmoothing.models import spec_of

    smoothed, data = load(options)
    spec = spec_of(smoothed.model)
    sigma = options["sigma"] if options["sigma"] is not None or spec is None else spec.sigma0
    if sigma is not None:
        check_sigma(sigma, 1)
    numbers = {key: options[key] for key in ("n", "alpha", "bound", "out")}
    checks = examine(smoothed, data, sigma=sigma, **numbers)
    show_checks(checks, options["as_json"])
    return 1 if any(check.status == FAIL for check in checks) else 0


def show_checks(checks: list[Check], as_json: bool = False) -> None:
    """One line a check."""
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=2))
        return
    for check in checks:
        click.echo(printable(f"{MARKS[check.status]} {check.name:<13} {check.message}"))


@click.command(
    epilog="""\b
Examples:
  ddsmoothing attack runs/dds --max 20
  ddsmoothing attack runs/dds --as stateless --max 20"""
)
@RUN
@executor_options
@_place_options
@click.option("--factors", help="Multiples of each radius.  [default: 0.5,0.9,0.999,1.5,2; for a memory those below 1]")
@click.option("--as", "level", type=click.Choice(["pointwise", "stateless"]), help="Default: the run's own level.")
@click.option("--store", type=click.Path(path_type=Path), help="The memory's file, for a run of level memory.")
@click.option("--steps", type=int, default=20, show_default=True, help="Gradient steps.")
@click.option("--samples", type=int, default=32, show_default=True, help="Noisy copies in each step.")
@click.option("--restarts", type=int, default=2, show_default=True)
@click.option("--n", type=int, default=1000, show_default=True, help="Samples of each answer at an attacked point.")
@click.option("--max", "maximum", type=click.IntRange(min=1), help="At most so many certified inputs.")
@click.option("--seed", type=int, help="Default: from the operating system.")
@JSON
def attack(run: Path, factors: str | None, **options: Any) -> int:
    """Attack each certified input of a run by gradients, inside its radius and outside.

    Exit code 1 if there are more violations inside than alpha explains. A run of level `stateless` is asked its whole
    rule again at every attacked point. `--as stateless` does so for a run that searched sigma; its certificates, of
    level `pointwise`, do not cover that, and violations are to be expected. A run of level `memory` is attacked at its
    memory (--store), inside its radii only.
    """
    from ddsmoothing.attacks import Attack
    from ddsmoothing.campaigns.attack import FACTORS, attack_run
    from ddsmoothing.cli.parsing import numbers
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.runs import load_run

    memory = None if options["store"] is None else _memory(options["store"])
    values = [f for f in FACTORS if memory is None or f < 1.0] if factors is None else numbers(factors, "--factors")
    plan = Attack(**{key: options[key] for key in ("steps", "samples", "restarts")})
    loaded = load_run(run)
    smoothed, data = _again(loaded, options)
    total = len(values) * min(len(loaded), options["maximum"] or len(loaded))
    with (
        advising(lambda: "no attack is kept; repeat the command, with a smaller --max perhaps."),
        executing(smoothed, options) as placed,
        SampleProgress(total, "attacking", "attacks") as progress,
    ):
        rest = {key: options[key] for key in ("n", "level", "maximum", "seed")}
        report = attack_run(loaded, placed, data, factors=values, attack=plan, memory=memory, progress=progress, **rest)
    if options["as_json"]:
        _attack_json(report)
    else:
        _attack_text(report, loaded)
    return 1 if report.contradicted and report.covered else 0


def _memory(path: Path) -> Callable[[torch.Tensor], NDArray[np.int64]]:
    """The answers of a memory to points inside its regions, -1 outside."""
    from ddsmoothing.memory import CertifiedMemory, Store

    memory = CertifiedMemory(Store.open(path))
    return lambda points: memory.peek(points.cpu()).prediction


def _attack_json(report: AttackReport) -> None:
    from dataclasses import asdict

    value = asdict(report) | {
        "abstained": {f"{factor:g}": count for factor, count in report.abstained.items()},
        "violations_inside": len(report.inside),
        "smallest": None if report.smallest is None else asdict(report.smallest),
        "contradicted": report.contradicted,
    }
    click.echo(json.dumps(value, indent=2))


def _attack_text(report: AttackReport, run: Run) -> None:
    from ddsmoothing.bounds import floor_text
    from ddsmoothing.tables.facts import class_text

    what = "input" if report.inputs == 1 else "inputs"
    click.echo(f"{report.inputs} certified {what}, {report.norm.upper()}, level {report.level}, seed {report.seed}")
    click.echo("radius x  violations  abstained")
    for factor in report.factors:
        click.echo(f"{factor:<8g}  {len(report.at(factor)):>10}  {report.abstained[factor]:>9}")
    for violation in report.inside[:SHOWN]:
        click.echo(
            f"input {violation.id}: class {class_text(run, violation.certified)} becomes "
            f"{class_text(run, violation.answered)} at distance {violation.distance:.6g}, inside its radius "
            f"{floor_text(violation.radius)} (sigma {violation.sigma:g})"
        )
    if (smallest := report.smallest) is not None:
        share = smallest.distance / smallest.radius
        click.echo(f"smallest perturbation found: {smallest.distance:.6g}, {share:.3f} of its radius")
    broken = len({violation.id for violation in report.inside})
    if not report.covered:
        click.echo(f"{broken} inputs changed class inside their radius; `pointwise` certificates do not exclude that.")
    elif report.contradicted:
        click.echo(f"CONTRADICTED: {broken} inputs broken inside their radius, p-value {report.p_value:.2g}.")
    else:
        click.echo(
            f"{broken} inputs broken inside their radius; each may be by chance with probability "
            f"{report.allowed:.2g} (p-value {report.p_value:.2g}). An attack that fails proves nothing: the "
            "certificate is the proof."
        )
