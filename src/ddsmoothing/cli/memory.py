"""``ddsmoothing memory``: apply, query, info, head, verify, seal and order-study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.completing import DATA_NAME, MODEL_NAME, RUN_FOLDER
from ddsmoothing.cli.loading import engine_options, load_smoothed, model_options, vote_option
from ddsmoothing.errors import InputError, StoreError, printable

if TYPE_CHECKING:
    import torch

    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.memory import CertifiedMemory, Risk
    from ddsmoothing.sigma import SigmaPolicy

STORE = click.option("--store", required=True, type=click.Path(path_type=Path), help="The memory's file.")
FILE = click.argument("store", type=click.Path(path_type=Path))
WORDS = {"acr": "ACR", "flipped": "class changed"}
TEMPORAL = (
    "Level memory: each radius protects its input against perturbed queries that arrive AFTER it, at this memory. It "
    "says nothing of another memory, or of the same model without one."
)


@click.group()
def memory() -> None:
    """A memory of certified regions: later queries inside a region get that region's class."""


def _run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--split", default="test", show_default=True, help="test or train."),
        click.option("--data", required=True, type=DATA_NAME, help="The run's data set."),
        click.argument("run", type=RUN_FOLDER),
    ):
        function = option(function)
    return function


def _risk_options(function: Callable[..., Any]) -> Callable[..., Any]:
    text = "Of a NEW memory: failure probability of "
    delta = click.option("--delta", type=float, help=text + "the whole memory, all attempts together.")
    alpha = click.option("--alpha", type=float, help=text + "each attempt; default: the run's, or 0.001.")
    return alpha(delta(function))


def _risk(options: dict[str, Any]) -> Risk | None:
    from ddsmoothing.memory import Risk

    if options["alpha"] is None and options["delta"] is None:
        return None
    return Risk(alpha=options["alpha"], delta=options["delta"])


@memory.command(
    epilog="""\b
Examples:
  ddsmoothing memory apply runs/dds --store dds.memory --data test.npz --out runs/dds-memory
  ddsmoothing memory apply runs/dds --store free.memory --data test.npz --order-free --delta 0.01 --out runs/free"""
)
@_run_options
@STORE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new run folder, of level memory.")
@click.option("--order-free", is_flag=True, help="All rows at once: conflicting balls shrink, no class changes.")
@_risk_options
@click.option("--floor", is_flag=True, help="Also the radius that holds in any order (runs made with --sigma-grid).")
@click.option("--model", type=MODEL_NAME, help="The run's model, for --floor.")
@model_options
@click.option("--floor-n", type=int, default=10_000, show_default=True, help="Samples at each sigma, for --floor.")
@engine_options
def apply(**options: Any) -> None:
    """Take a finished run into a memory, row by row, and write what becomes of it as a new run.

    Predictions, radii and `correct` are recomputed; each row says whether its region was kept, cut or answered.
    """
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.cli.results import print_table
    from ddsmoothing.data import load_data
    from ddsmoothing.memory.apply import apply_memory, open_store
    from ddsmoothing.runs import load_run

    run = load_run(options["run"])
    labels = any(row.label is not None for row in run.rows)
    data = load_data(options["data"], split=options["split"], labels=labels, download=options["download"])
    floors = _floors(run, data, options) if options["floor"] else None
    store = open_store(options["store"], run, data, _risk(options))
    with SampleProgress(len(run), f"reconciling {len(run)} rows", "rows") as progress:
        applied = apply_memory(
            run,
            data,
            store,
            options["out"],
            order_free=options["order_free"],
            floors=floors,
            progress=progress,
        )
    if data.y is not None:
        print_table([run, applied.run])
    click.echo(
        f"kept {applied.kept}, cut {applied.cut} (of them to nothing {applied.emptied}), answered from memory "
        f"{applied.answered} (class changed {applied.flipped}, had abstained {applied.gained}), "
        f"abstained {applied.abstained}."
    )
    if run.header.sampler == "target":
        click.echo("The run stopped each input at a wanted radius: its regions are no larger than that.")
    if floors is not None:
        radii = [floor.radius for floor in floors]
        mean, held = sum(radii) / len(radii), sum(radius > 0.0 for radius in radii)
        click.echo(f"floor in any order: mean {_floored(mean, 4)}, above 0 for {held} rows.")
    click.echo(f"{TEMPORAL}\n{len(applied.run)} results in {applied.run.path}, {len(store)} regions in {store.name}")


def _floors(run: Any, data: Any, options: dict[str, Any]) -> Any:
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.memory.floor import grid_of, order_proof_floor

    grid = grid_of(run)
    if options["model"] is None:
        raise InputError("--floor draws fresh samples at every sigma of the grid; give the run's --model.")
    options = options | {key: getattr(run.header, key) for key in ("norm", "num_classes", "vote")}
    smoothed = load_smoothed(options, data[:1][0])
    with SampleProgress(len(run) * len(grid) * options["floor_n"], "floor") as progress:
        return order_proof_floor(run, smoothed, data, n=options["floor_n"], progress=progress)


@memory.command(
    epilog="""\b
Examples:
  ddsmoothing memory query --store m.memory --model fashion-mnist-cnn --input new.npz --sigma0 0.25 --n 10000
  ddsmoothing memory query --store m.memory --model my.nets:build --input image.png --sigma 0.25 --json"""
)
@STORE
@click.option("--model", type=MODEL_NAME, help="The memory's model: another one is refused.")
@model_options
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help="FILE.npz with x, or an image.")
@click.option("--sigma", type=float, help="One sigma for every attempt.")
@click.option("--sigma0", type=float, help="Search sigma for each input from here; default: the model's own.")
@click.option("--sigma-min", type=float, help="Default: sigma0 / 4.")
@click.option("--sigma-max", type=float, help="Default: 4 sigma0.")
@click.option("--sigma-grid", help="Search this finite set only, such as 0.25,0.5,1.")
@click.option("--n0", type=int, help="Samples that choose the class; with --n: that many for every input.")
@click.option("--n", type=int, help="Samples that bound its probability; default: planned, at most --n-max.")
@click.option("--n-max", type=int, help="Most samples an input, where they are planned.  [default: 100000]")
@click.option("--bound", type=click.Choice(["one-class", "two-class"]), default="one-class", show_default=True)
@click.option("--norm", type=click.Choice(["l2", "l1"]), default="l2", show_default=True)
@vote_option
@_risk_options
@click.option("--grow", is_flag=True, help="Inside a region, certify all the same and store a larger ball.")
@click.option("--model-id", help="Names a model that has no hash (a bare callable).")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def query(**options: Any) -> None:
    """Answer inputs one after another; what is certified on the way is stored. A new file starts a new memory."""
    x = _inputs(options["source"])
    answers = _opened(options, x).query(x, grow=options["grow"])
    if not options["as_json"]:
        click.echo("input\tprediction\tradius\treason")
    for i, row in enumerate(answers.rows):
        if options["as_json"]:
            level = None if row.reason == "uncertified" else answers.level
            click.echo(json.dumps({"input": i, "level": level, **vars(row)}))
        else:
            by = "" if row.by is None else f" by region {row.by}"
            click.echo(f"{i}\t{row.prediction}\t{_floored(row.radius)}\t{row.reason}{by}")
    if not options["as_json"]:
        click.echo(TEMPORAL)


def _floored(value: float, digits: int = 6) -> str:
    from ddsmoothing.bounds import floor_text

    return floor_text(value, digits)


def _inputs(path: Path) -> torch.Tensor:
    """Inputs ``(B, ...)`` of an npz file, or of one image."""
    import torch

    from ddsmoothing.data import load_data
    from ddsmoothing.data.images import load_image
    from ddsmoothing.noise import LEVELS

    if path.suffix == ".npz":
        return load_data(str(path), labels=False)[:][0]
    picture = load_image(path)
    if picture.levels != LEVELS:
        raise InputError(
            f"{path} has 16 bits a pixel, and a memory keeps 8; save it with 8, or give floats as FILE.npz."
        )
    return torch.from_numpy(picture.pixels.copy())[None]


def _policy(options: dict[str, Any], smoothed: SmoothedClassifier) -> SigmaPolicy:
    from ddsmoothing.cli.parsing import check_plausible, parse_grid, start_sigma
    from ddsmoothing.sigma import SigmaPolicy

    if options["sigma"] is not None:
        if any(options[key] is not None for key in ("sigma0", "sigma_min", "sigma_max", "sigma_grid")):
            raise InputError("--sigma is one sigma for all inputs, expected no option of the search with it.")
        return SigmaPolicy.fixed(check_plausible(options["sigma"], False))
    grid = parse_grid(options["sigma_grid"], False)
    start = start_sigma(options | {"allow_large_sigma": False}, smoothed)
    return SigmaPolicy.search(start, options["sigma_min"], options["sigma_max"], grid)


def _opened(options: dict[str, Any], x: torch.Tensor) -> CertifiedMemory:
    from ddsmoothing.memory import CertifiedMemory

    smoothed = load_smoothed(options, x)
    policy, path, risk = _policy(options, smoothed), options["store"], _risk(options)
    same = {key: options[key] for key in ("n0", "n", "n_max", "bound", "model_id")}
    if path.exists() and path.stat().st_size:
        opened = CertifiedMemory.open(path, smoothed, policy, **same)
        if risk is not None and risk != opened.store.risk:
            raise StoreError(f"{path} was started with {opened.store.risk}; leave --alpha and --delta out.")
        return opened
    return CertifiedMemory.create(
        path, smoothed, policy, shape=x.shape[1:], alpha=options["alpha"], delta=options["delta"], **same
    )


@memory.command(epilog="\b\nExample:\n  ddsmoothing memory info dds.memory")
@FILE
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(store: Path, as_json: bool) -> None:
    """What a memory belongs to and how full it is."""
    from dataclasses import asdict

    from ddsmoothing.memory import Store

    opened = Store.open(store)
    found = {
        "regions": len(opened),
        "attempts": opened.attempts,
        "risk": str(opened.risk),
        "alpha_of_next_attempt": opened.risk.of(opened.attempts + 1),
        "sealed": opened.sealed,
        "head": opened.head,
        "created": opened.created,
        **asdict(opened.binding),
    }
    if as_json:
        click.echo(json.dumps(found))
    else:
        answers = found["behaviour"]
        plain = {"sealed": found["sealed"] or "no", "behaviour": f"{len(answers)} answers" if answers else "not kept"}
        for key, value in (found | plain).items():
            click.echo(printable(f"{key.replace('_', ' ')}: {value}"))


@memory.command(epilog="\b\nExample:\n  ddsmoothing memory head dds.memory")
@FILE
def head(store: Path) -> None:
    """Print the last hash of a memory, over all that was ever done with it. Keep it for `memory verify --head`."""
    from ddsmoothing.memory import Store

    opened = Store.open(store)
    with opened.reading():
        click.echo(f"{opened.head}  {store} ({len(opened)} regions, {opened.attempts} attempts)")


@memory.command(
    epilog="""\b
Examples:
  ddsmoothing memory verify dds.memory
  ddsmoothing memory verify dds.memory --head f518f7d9c94c8163db4df37a6b02e665a4a05b0277a5cfcbc4387d50b8414706"""
)
@FILE
@click.option("--quick", is_flag=True, help="Leave out the distances of all pairs of regions.")
@click.option("--head", "known", help="What `memory head` printed earlier: the file must go on from there.")
def verify(store: Path, quick: bool, known: str | None) -> None:
    """Check pages, tables, hashes, points, sketches, radii, attempts, the seal, and that no two classes' regions meet.

    Without --head a file that was rewritten as a whole, or put back from an older copy, is not told from the memory.
    """
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.memory import Store
    from ddsmoothing.memory.verify import verify_store

    opened = Store.open(store)
    with SampleProgress(max(1, len(opened)), f"verifying {len(opened)} regions", "regions") as progress:
        found = verify_store(opened, pairs=not quick, head=known, progress=progress)
    for line in found.findings:
        click.echo(printable(line))
    if not found.ok:
        raise StoreError(f"{store}: {len(found.findings)} findings.")
    pairs = "" if found.pairs else ", pairs left out"
    click.echo(f"{store}: {found.regions} regions of {found.attempts} attempts hold what they say{pairs}.")
    click.echo(f"head {found.head}{'' if known is None else ', and the one given is in its chain'}")


@memory.command(epilog="\b\nExample:\n  ddsmoothing memory seal dds.memory")
@FILE
def seal(store: Path) -> None:
    """Freeze a memory for good and print its hash. Outside its regions it then answers without a certificate."""
    from ddsmoothing.memory import Store

    opened = Store.open(store)
    click.echo(f"{opened.seal()}  {store} ({len(opened)} regions)")


@memory.command(
    "order-study",
    epilog="""\b
Example:
  ddsmoothing memory order-study runs/dds --data test.npz --permutations 50""",
)
@_run_options
@click.option("--permutations", type=int, default=20, show_default=True, help="Orders; the first is the run's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random orders.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def order_study(run: Path, data: str, split: str, permutations: int, seed: int, as_json: bool) -> None:
    """How far certified accuracy and ACR of a run move with the order in which a memory sees it."""
    from ddsmoothing.data import load_data
    from ddsmoothing.memory import study
    from ddsmoothing.memory.inputs import inputs_of
    from ddsmoothing.runs import load_run
    from ddsmoothing.tables import share_text

    loaded = load_run(run)
    inputs = inputs_of(loaded, load_data(data, split=split))
    found = study.order_study(loaded, inputs, permutations=permutations, seed=seed)
    columns = {name: getattr(found, name).tolist() for name in ("accuracy", "acr", "cut", "answered", "flipped")}
    free = {"accuracy": found.free_accuracy, "acr": found.free_acr}
    if as_json:
        click.echo(json.dumps({"pairs": found.pairs, "order_free": free, **columns}))
        return
    click.echo(f"{found.pairs} pairs of certified balls of different class meet; {permutations} orders")
    click.echo("\t\tmin\tmean\tmax\torder-free")
    for name, values in columns.items():
        text = _floored if name == "acr" else share_text
        shown = [text(value, 4) for value in (min(values), sum(values) / len(values), max(values))]
        click.echo("\t".join([f"{WORDS.get(name, name):13}", *shown, text(free[name], 4) if name in free else "-"]))
