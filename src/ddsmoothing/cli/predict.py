"""``ddsmoothing predict``."""

from __future__ import annotations

import json
from typing import Any

import click

from ddsmoothing.cli.certify import noise_options
from ddsmoothing.cli.loading import data_options, load
from ddsmoothing.cli.parsing import fixed_sigma
from ddsmoothing.cli.stateless import offsets_options, stateless_options, stateless_policy, with_offsets


@click.command(
    epilog="""\b
Examples:
  ddsmoothing predict --model fashion-mnist-cnn --data fashion-mnist-sample --sigma 0.25 --max 20
  ddsmoothing predict --model net.safetensors --data test.npz --pair-sigmas pairs.json --n 2000"""
)
@data_options
@noise_options
@offsets_options
@stateless_options
@click.option("--n", type=int, default=1000, show_default=True, help="Samples an input; of a rule beside its pilots.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(**options: Any) -> None:
    """Answers of the smoothed classifier (-1: abstained). Nothing is said about robustness."""
    from ddsmoothing.campaigns.subset import check_labels, subset_ids
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.stateless import predict_stateless

    smoothed, data = load(options)
    ids = subset_ids(data, options["skip"], options["maximum"])
    check_labels(data, ids, smoothed.num_classes)
    x, y = data[ids]
    chosen = stateless_policy(smoothed, data, ids, options)
    rule = None if chosen is None else chosen[0].rule
    with SampleProgress(len(ids) * options["n"], f"predicting {len(ids)} inputs") as progress:
        asked = {"n": options["n"], "alpha": options["alpha"], "seed": options["seed"], "ids": ids}
        if rule is not None:
            answers = predict_stateless(smoothed, x, rule, **asked, progress=progress)
        else:
            smoothed, _ = with_offsets(smoothed, data, ids, options)
            answers = smoothed.predict(x, fixed_sigma(options), **asked, progress=progress).prediction
    if not options["as_json"]:
        click.echo("id\tlabel\tprediction")
    for i, label, answer in zip(ids, y.tolist(), answers.tolist(), strict=True):
        label = None if data.y is None else label
        if options["as_json"]:
            click.echo(json.dumps({"id": i, "label": label, "prediction": answer}))
        else:
            click.echo(f"{i}\t{'-' if label is None else label}\t{answer}")
