"""Where the forward passes of a command run: the options, and the workers that they ask for."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ddsmoothing.cli.loading import Command, add
from ddsmoothing.errors import InputError

if TYPE_CHECKING:
    from ddsmoothing.classifier import SmoothedClassifier


SEVERAL_DEVICES = "auto, cpu, cuda:1, ..; beside --executor also cuda:0,cuda:1 or all."


def executor_options(function: Command) -> Command:
    """Options of every command whose forward passes may run elsewhere, or on several GPUs; above those of the model."""

    @functools.wraps(function)
    def placed(*args: Any, **options: Any) -> Any:
        return function(*args, **options | places(options))

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
            "--workers", type=click.IntRange(min=1), help="Ray: processes of one CPU or GPU; default: one for each."
        ),
    ]
    for option in getattr(function, "__click_params__", ()):
        if option.name == "device":
            option.help = SEVERAL_DEVICES
    return add(placed, options)


def places(options: dict[str, Any]) -> dict[str, Any]:
    """What --device means where it may name several GPUs: the first one, for this process, and a worker on each."""
    name = options["device"]
    if name != "all" and "," not in name:
        return {"gpus": ()}
    from ddsmoothing.devices import named_devices

    first, *others = devices = named_devices(name)
    if not others:
        return {"device": str(first), "gpus": ()}
    if options["address"] is not None or options["workers"] is not None:
        raise InputError(f"--device {name} starts a worker on each of these GPUs, expected no --address and --workers.")
    return {"device": str(first), "gpus": tuple(device.index for device in devices), "executor": "ray"}


@contextmanager
def executing(smoothed: SmoothedClassifier, options: dict[str, Any]) -> Iterator[SmoothedClassifier]:
    """The classifier on the workers that the options ask for; they are stopped afterwards."""
    from ddsmoothing.counting.workers import workers_of
    from ddsmoothing.devices import named_device

    place = {key: options[key] for key in ("address", "workers", "gpus")}
    with workers_of(options["executor"], **place, device=named_device(options["device"]).type) as workers:
        yield smoothed.with_workers(workers)
        if workers is not None and (workers.lost or workers.retries):
            click.echo(
                f"{workers.lost} workers were lost and {workers.retries} tasks sent again; the results are the same.",
                err=True,
            )
