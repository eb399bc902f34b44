"""The command line: thin, it translates options into the Python API and errors into one line and an exit code.

Exit codes: 0 fine, 1 failure, 2 usage, 75 interrupted by SIGINT or SIGTERM and resumable. Heavy modules are imported
inside the commands, so ``--help`` is fast.
"""

from __future__ import annotations

import io
import sys

import click

from ddsmoothing.cli.certify import certify
from ddsmoothing.cli.checks import attack, doctor, verify
from ddsmoothing.cli.demo import demo
from ddsmoothing.cli.help import Group
from ddsmoothing.cli.interrupts import INTERRUPTED, interruptible
from ddsmoothing.cli.memory import memory
from ddsmoothing.cli.messages import plain_warnings
from ddsmoothing.cli.predict import predict
from ddsmoothing.cli.predictions import predictions
from ddsmoothing.cli.report import card, report
from ddsmoothing.cli.results import analyze, export, import_results, plot
from ddsmoothing.cli.runs import merge, status
from ddsmoothing.cli.sigma import optimize, sigmas
from ddsmoothing.cli.stateless import offsets, pairs
from ddsmoothing.cli.train import train
from ddsmoothing.errors import DdsmoothingError, printable


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ddsmoothing")
def app() -> None:
    """Certify neural networks by randomized smoothing, with a noise scale chosen for each input.

    Sigma and radii are in the units of the input: pixels in [0, 1] for images.

    \b
    Start with:      ddsmoothing demo
    Then your own:   ddsmoothing certify --model M --data D --data-dependent --out RUN
    """


for command in (status, merge):
    app.add_command(command)
for command in (
    demo,
    train,
    predictions,
    certify,
    predict,
    optimize,
    sigmas,
    offsets,
    pairs,
    analyze,
    plot,
    report,
    card,
    export,
    import_results,
    memory,
    verify,
    doctor,
    attack,
):
    app.add_command(command)


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        with interruptible(), plain_warnings():
            result = app.main(args, prog_name="ddsmoothing", standalone_mode=False)
    except DdsmoothingError as error:
        click.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(f"interrupted{': ' if str(error) else ''}{error}", err=True)
        return INTERRUPTED
    except OSError as error:
        click.echo(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        return 1
    return result if isinstance(result, int) else 0


def script() -> None:
    """Entry point of the ``ddsmoothing`` command; ``--model pkg.module:function`` may lie in the current folder."""
    sys.path.append("")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is shown as escapes
    sys.exit(main())
