"""``ddsmoothing optimize`` and ``sigmas``."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import click

from ddsmoothing.cli.executor import executing, executor_options
from ddsmoothing.cli.interrupts import advising
from ddsmoothing.cli.loading import data_options, load
from ddsmoothing.cli.messages import say
from ddsmoothing.cli.parsing import parse_grid, start_sigma

FILE = click.Path(path_type=Path)


@click.command(
    epilog="""\b
Examples:
  ddsmoothing optimize --model fashion-mnist-cnn --data fashion-mnist-sample --max 100 --out sigmas.json
  ddsmoothing optimize --model net.safetensors --data test.npz --method ascent --preset package-2021 --out s.json
  ddsmoothing certify --model net.safetensors --data test.npz --sigmas s.json --out runs/dds"""
)
@executor_options
@data_options
@click.option("--method", type=click.Choice(["search", "ascent"]), default="search", show_default=True)
@click.option("--sigma0", type=float, help="Start; default: the model's training sigma. Pixels in [0, 1].")
@click.option("--sigma-min", type=float, help="Search: default sigma0 / 4. Ascent: default none.")
@click.option("--sigma-max", type=float, help="Search: default 4 sigma0. Ascent: default none.")
@click.option("--sigma-grid", help="Search this finite set only, such as 0.25,0.5,1.")
@click.option("--n", type=int, default=10_000, show_default=True, help="Search: samples of the certification to come.")
@click.option("--alpha", type=float, default=0.001, show_default=True, help="Search: its failure probability.")
@click.option("--preset", type=click.Choice(["paper", "package-2021"]), default="paper", show_default=True)
@click.option("--step", type=float, help="Ascent: step; default by preset.")
@click.option("--iterations", type=int, help="Ascent: iterations; default by preset.")
@click.option("--samples", type=int, help="Ascent: noisy copies an iteration; default by preset.")
@click.option("--anchored", is_flag=True, help="Ascent: keep the class of the first step.")
@click.option("--keep-best", is_flag=True, help="Ascent: keep the iterate with the best certified score.")
@click.option("--model-id", help="Names a model that has no hash (a bare callable).")
@click.option("--out", required=True, type=FILE, help="The sigma file (JSON).")
def optimize(**options: Any) -> None:
    """Choose a sigma for each input and write a sigma file, bound to the data set and the model.

    `search` needs forward passes only; `ascent` is the paper's gradient ascent. No label is used.
    """
    from ddsmoothing.campaigns.subset import subset_ids
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.errors import DataError, InputError
    from ddsmoothing.plan import SearchPlan
    from ddsmoothing.sigma import choose_sigmas, save_sigmas

    smoothed, data = load(options)
    ids = subset_ids(data, options["skip"], options["maximum"])
    if not options["out"].absolute().parent.is_dir():
        raise DataError(f"the folder of --out {options['out']} does not exist.")
    bounds = {key: options[key] for key in ("sigma_min", "sigma_max")}
    chosen: dict[str, Any] = {"sigma0": start_sigma(options, smoothed), **bounds}
    grid = parse_grid(options["sigma_grid"], options["allow_large_sigma"])
    if options["method"] == "search":
        chosen |= {"sigma_grid": grid, "n": options["n"], "alpha": options["alpha"]}
        unit, total = "samples", len(ids) * SearchPlan().forwards
    else:
        if grid is not None:
            raise InputError("--sigma-grid belongs to --method search; the ascent moves sigma continuously.")
        chosen |= {key: options[key] for key in ("preset", "step", "iterations", "samples", "anchored", "keep_best")}
        unit, total = "inputs", len(ids)
    with (
        advising(lambda: "no sigma was written, and none is kept; repeat the command."),
        executing(smoothed, options) as placed,
        SampleProgress(total, f"choosing sigma for {len(ids)} inputs", unit) as progress,
    ):
        file = choose_sigmas(
            placed,
            data,
            ids,
            method=options["method"],
            options=chosen,
            seed=options["seed"],
            model_id=options["model_id"],
            progress=progress,
        )
    save_sigmas(file, options["out"])
    values = sorted(file.sigma.values())
    say(
        f"{len(values)} sigmas in {options['out']}: smallest {values[0]:.4g}, median {median(values):.4g}, "
        f"largest {values[-1]:.4g} (seed {file.seed})",
        options["out"],
    )


@click.group()
def sigmas() -> None:
    """Read and write the sigma files of the 2021 code (a 1-D tensor by position)."""


@sigmas.command(
    "import",
    epilog="""\b
Example:
  ddsmoothing sigmas import sigmas_test.pth --data fashion-mnist:DIR --model net.safetensors --out sigmas.json""",
)
@click.argument("old", type=FILE)
@data_options
@click.option("--model-id", help="Names a model that has no hash (a bare callable).")
@click.option("--out", required=True, type=FILE, help="The sigma file (JSON).")
def import_(old: Path, **options: Any) -> None:
    """Bind a tensor of 2021 to a data set and a model: its position is the index in the data set.

    With --norm l1 its numbers are half-widths lambda, as in 2021; the file holds standard deviations.
    """
    from ddsmoothing.campaigns.subset import subset_ids
    from ddsmoothing.files import file_name
    from ddsmoothing.models import model_identity
    from ddsmoothing.sigma import SigmaFile, save_sigmas
    from ddsmoothing.sigma.files import import_tensor

    smoothed, data = load(options)
    ids = subset_ids(data, options["skip"], options["maximum"])
    thetas = import_tensor(old, ids, len(data))
    file = SigmaFile(
        data=data.fingerprint(),
        model=model_identity(smoothed.model, options["model_id"]),
        norm=options["norm"],
        method="import",
        options={"file": file_name(old.name)},
        seed=None,
        sigma={i: smoothed.certificate.noise.sigma(float(t)) for i, t in zip(ids, thetas, strict=True)},
    )
    save_sigmas(file, options["out"])
    say(f"{len(ids)} sigmas in {options['out']}", options["out"])


@sigmas.command(
    "export",
    epilog="""\b
Example:
  ddsmoothing sigmas export sigmas.json sigmas_test.pth""",
)
@click.argument("file", type=FILE)
@click.argument("old", type=FILE)
def export_(file: Path, old: Path) -> None:
    """Write a sigma file as a tensor of 2021, in the order of the sample ids; for l1 as half-widths lambda."""
    import numpy as np

    from ddsmoothing.certificate import certificate_for
    from ddsmoothing.sigma import load_sigmas
    from ddsmoothing.sigma.files import export_tensor

    loaded = load_sigmas(file)
    scale = certificate_for(loaded.norm).noise.scale
    export_tensor(np.array([scale(loaded.sigma[i]) for i in sorted(loaded.sigma)]), old)
    say(f"{len(loaded.sigma)} thetas in {old}", old)
