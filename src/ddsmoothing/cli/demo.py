"""``ddsmoothing demo``: fixed against data-dependent sigma and a stateless rule on real images, in under a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset
    from ddsmoothing.memory.apply import Applied
    from ddsmoothing.runs import OffsetsNote, Run
    from ddsmoothing.sigma import SigmaPolicy

MODEL, DATA = "fashion-mnist-cnn", "fashion-mnist-sample"
FIXED = (0.12, 0.25, 0.5, 1.0)
OFFSETS = "fashion-mnist-offsets.json"  # fitted at the best of these, on training images
SKIP, N0, N, ALPHA = 5, 100, 1000, 0.001


@click.command(
    epilog="""\b
Example:
  ddsmoothing demo --out demo"""
)
@click.option("--out", default="ddsmoothing-demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True, help="Row i uses seed + i.")
def demo(out: Path, seed: int) -> None:
    """Certify 200 real images at fixed sigmas, at a sigma chosen for each, and by one rule to deploy as it is.

    Writes a table, a plot, a report and run folders.
    """
    from ddsmoothing.bounds import floor_text, largest_lower_bound, normal_quantile_below
    from ddsmoothing.campaigns import CertifyRequest, certify_run
    from ddsmoothing.certificate import L2Certificate
    from ddsmoothing.claims import Plurality
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.cli.progress import SampleProgress
    from ddsmoothing.cli.results import print_noise, print_table
    from ddsmoothing.data import load_data
    from ddsmoothing.models import load_model, spec_of
    from ddsmoothing.plots import plot_certified_accuracy
    from ddsmoothing.report import write_report
    from ddsmoothing.runs import rejudged
    from ddsmoothing.sigma import SigmaPolicy

    start, out = time.monotonic(), _free(out)
    model, data = load_model(MODEL), load_data(DATA)
    spec = spec_of(model)
    assert spec is not None and spec.sigma0 is not None
    smoothed = SmoothedClassifier(model, L2Certificate(), num_classes=10, block_size=256)
    policies: dict[str, SigmaPolicy] = {f"fixed-{sigma:g}": SigmaPolicy.fixed(sigma) for sigma in FIXED}
    policies["data-dependent"] = SigmaPolicy.search(spec.sigma0)
    policies["stateless"], note = _stateless(smoothed, data)
    inputs = len(range(0, len(data), SKIP))
    cap = normal_quantile_below(largest_lower_bound(N, ALPHA))
    click.echo(f"{inputs} Fashion-MNIST test images, n0={N0}, n={N}, alpha={ALPHA}.")
    click.echo(f"The largest radius that n={N} allows is {floor_text(cap, 2)} sigma.")
    total = sum(inputs * (policy.forwards + N0 + N) for policy in policies.values())
    runs = []
    with SampleProgress(total, "demo") as progress:
        for offset, (name, policy) in enumerate(policies.items()):
            run = certify_run(
                smoothed,
                data,
                CertifyRequest(policy, n0=N0, n=N, alpha=ALPHA, skip=SKIP, seed=seed + offset),
                out / name,
                model_name=MODEL,
                offsets=note if name == "stateless" else None,
                progress=progress,
            )
            runs.append(run)
    pointwise = runs[:-1]
    remembered = _remember(pointwise[-1], data, out)
    beside = runs[FIXED.index(float(runs[-1].sigma[0]))]
    print_table([*runs, remembered.run])
    print_noise([*runs, remembered.run])
    plain = [rejudged(run, Plurality()) for run in pointwise]
    print_table(plain)
    larger = sum(int((one.radius > run.radius).sum()) for one, run in zip(plain, pointwise, strict=True))
    click.echo(
        "The last table judges the same samples by a plurality vote with the one-class bound, as papers' tables do:\n"
        f"{larger} of {sum(len(run) for run in pointwise)} radii are larger there. A deployed system has to vote as "
        "its certificates do.\n"
        "Level pointwise: each certificate holds for the classifier that uses THIS image's sigma everywhere. For a\n"
        "fixed sigma that is the classifier itself; for data-dependent sigma it says nothing about a classifier that\n"
        "chooses sigma anew at the perturbed image.\n"
        "Level stateless: one rule for all images, class offsets at one sigma, which holds at every query as it is.\n"
        f"{_by_class(beside, runs[-1])}\n"
        "Level memory: the same certificates in a memory of regions, from which every later query to it is answered.\n"
        f"{remembered.kept} of them were kept whole, {remembered.cut} cut by an earlier one of another class, "
        f"{remembered.answered} answered from memory."
    )
    figures = plot_certified_accuracy(runs, out)
    click.echo(f"plot: {figures[0]}\nruns: {out} ({len(runs) + 1} folders)")
    page = write_report([*runs, remembered.run], out / "report.html", [data])
    click.echo(f"report: {page}\ntime: {time.monotonic() - start:.0f} s")


def _stateless(smoothed: SmoothedClassifier, data: Dataset) -> tuple[SigmaPolicy, OffsetsNote]:
    """The shipped offsets at the sigma they were fitted at, as a stateless rule, and where they are from."""
    from importlib.resources import as_file, files

    from ddsmoothing.claims import PairTable
    from ddsmoothing.cli.stateless import fitted_note
    from ddsmoothing.sigma import SigmaPolicy
    from ddsmoothing.stateless import load_offsets

    with as_file(files("ddsmoothing") / "assets" / OFFSETS) as path:
        file, digest = load_offsets(path)
    ids = list(range(0, len(data), SKIP))
    note = fitted_note(OFFSETS, file, digest, len(file.offsets), smoothed, data, ids, {"allow_seen": False})
    return SigmaPolicy.stateless(PairTable.one(file.sigma, file.offsets, file.norm)), note


def _by_class(fixed: Run, offsets: Run) -> str:
    """What offsets do to each class."""
    shares = []
    for run in (fixed, offsets):
        each = [run.correct[run.label == c].mean() for c in range(run.header.num_classes) if (run.label == c).any()]
        shares.append(" ".join(f"{100 * share:.0f}" for share in each))
    return f"Right by class, %, sigma {offsets.sigma[0]:g} without offsets: {shares[0]}\nand with them: {shares[1]}"


def _remember(run: Run, data: Dataset, out: Path) -> Applied:
    """The run taken into a new memory; no samples are drawn."""
    from ddsmoothing.memory.apply import apply_memory, open_store

    store = open_store(out / "data-dependent.memory", run, data, None)
    applied = apply_memory(run, data, store, out / "memory")
    store.close()
    return applied


def _free(out: Path) -> Path:
    """The folder itself, or with a number added if something is there already."""
    number, free = 1, out
    while free.exists():
        number += 1
        free = out.with_name(f"{out.name}-{number}")
    return free
