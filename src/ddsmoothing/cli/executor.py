"""Where the forward passes of a command run: the options, and the workers that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.loading import Command, add

if TYPE_CHECKING:
    from ddsmoothing.classifier import SmoothedClassifier


def executor_options(function: Command) -> Command:
    """Options of every command whose forward passes may run elsewhere."""
    options = [
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where forward passes run; the results are the same.",
        ),
        click.option("--address", help="Ray: HOST:PORT of a cluster, or auto; default: Ray is started here."),
        click.option(
            "--workers", type=click.IntRange(min=1), help="Ray: processes of one thread; default: one for each CPU."
        ),
    ]
    return add(function, options)


@contextmanager
def executing(smoothed: SmoothedClassifier, options: dict[str, Any]) -> Iterator[SmoothedClassifier]:
    """The classifier on the workers that the options ask for; they are stopped afterwards."""
    from ddsmoothing.counting.workers import workers_of
    from ddsmoothing.devices import named_device

    place = {"address": options["address"], "workers": options["workers"]}
    with workers_of(options["executor"], **place, device=named_device(options["device"]).type) as workers:
        yield smoothed.with_workers(workers)
        if workers is not None and (workers.lost or workers.retries):
            click.echo(
                f"{workers.lost} workers were lost and {workers.retries} tasks sent again; the results are the same.",
                err=True,
            )
