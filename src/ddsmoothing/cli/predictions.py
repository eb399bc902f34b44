"""``ddsmoothing predictions``: what CAT-RS and selectors train with, made before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddsmoothing.cli.completing import DATA_NAME, MODEL_NAME
from ddsmoothing.cli.interrupts import INTERRUPTED, asked_to_stop
from ddsmoothing.cli.loading import DATA, MODEL, add, model_options
from ddsmoothing.cli.parsing import numbers


def _options(function: Any) -> Any:
    options = [
        click.option("--model", type=MODEL_NAME, help=MODEL),
        model_options,
        click.option("--data", required=True, type=DATA_NAME, help=DATA),
        click.option("--split", default="train", show_default=True, help="train or test."),
        click.option("--sigma", type=float, help="Of the noise, pixels in [0, 1]; for CAT-RS."),
        click.option("--experts", help="For a selector: sigmas of experts, such as 0.25,0.5,1; radii are written."),
        click.option(
            "--n", type=click.IntRange(min=1), default=64, show_default=True, help="Noisy copies of each input."
        ),
        click.option("--seed", type=click.IntRange(min=0), help="Of the noise.  [default: 0]"),
        click.option("--model-id", help="A name for a model that is a bare callable."),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, .."),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="A file; begun ones are gone on with."
        ),
    ]
    return add(function, options)


@click.command(
    epilog="""\b
Examples:
  ddsmoothing predictions --model runs/net/model.safetensors --data fashion-mnist:DIR --sigma 0.5 --out votes
  ddsmoothing train --preset fashion-mnist-catrs --data fashion-mnist:DIR --sigma 0.5 --predictions votes --out RUN
  ddsmoothing predictions --model MODEL --data fashion-mnist:DIR --experts 0.25,0.5,1 --out radii
  ddsmoothing train --preset fashion-mnist-selector --data fashion-mnist:DIR --predictions radii --out RUN"""
)
@_options
def predictions(**options: Any) -> int:
    """Write the mean softmax of n noisy copies of every input of a data set, or the radii of experts there.

    An expert is the model at one sigma (several networks: --model by-sigma:FILE). Its radius is what its counts promise
    for the true class under a pairwise vote, 0 where they promise none.

    The file is bound to the data set and the model. The same command goes on where it was interrupted (exit code 75).
    """

    from ddsmoothing.cli.loading import load_base
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.counting.engine import PRECISIONS
    from ddsmoothing.data import load_data
    from ddsmoothing.devices import named_device
    from ddsmoothing.errors import InputError
    from ddsmoothing.models import probe_classes
    from ddsmoothing.training.predictions import make_predictions

    if (options["sigma"] is None) == (options["experts"] is None):
        raise InputError("expected one of --sigma (soft votes, for CAT-RS) and --experts (radii, for a selector).")
    experts = () if options["experts"] is None else tuple(numbers(options["experts"], "--experts"))
    data = load_data(options["data"], split=options["split"], labels=False, download=options["download"])
    x, device = data[:1][0], named_device(options["device"])
    model = load_base(options, x)
    with asked_to_stop() as stop, SampleProgress(len(data), "predictions", "inputs") as progress:
        finished = make_predictions(
            model,
            data,
            options["out"],
            classes=options["num_classes"] or probe_classes(model, x.to(device)),
            sigma=experts or options["sigma"],
            n=options["n"],
            seed=options["seed"],
            model_id=options["model_id"],
            precision=PRECISIONS[options["precision"]],
            progress=progress,
            stop=stop,
        )
    click.echo(f"{options['out']}: {len(data)} inputs" if finished else "stopped; the same command continues it.")
    return 0 if finished else INTERRUPTED
