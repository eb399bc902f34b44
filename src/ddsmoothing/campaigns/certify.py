"""One run: choose sigma, certify, and write each group of rows as soon as it is there.

It is the only place where a sigma policy, a smoothed classifier and a run folder meet. A run whose folder exists is
continued: finished inputs are skipped, an input in progress goes on from its kept counts, and the rest gets the noise
it would have got.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ddsmoothing.campaigns.listening import Tell, heard
from ddsmoothing.campaigns.request import CertifyRequest
from ddsmoothing.campaigns.rows import class_names, rows_of
from ddsmoothing.campaigns.subset import check_labels
from ddsmoothing.claims import POINTWISE, STATELESS
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.counting.fingerprint import INPUTS as BEHAVIOUR_INPUTS
from ddsmoothing.counting.fingerprint import behaviour
from ddsmoothing.counting.here import numerics_on
from ddsmoothing.counting.kept import KeptCounts, Paced
from ddsmoothing.data import Dataset, as_dataset
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.files import file_name, file_names
from ddsmoothing.inputs import Batch
from ddsmoothing.models import model_hash
from ddsmoothing.noise import check_steps
from ddsmoothing.plan import Sampler
from ddsmoothing.progress import Told, telling
from ddsmoothing.runs.agreement import continued
from ddsmoothing.runs.events import EventLog, Listener
from ddsmoothing.runs.schema import (
    DataIdentity,
    Header,
    ModelIdentity,
    OffsetsNote,
    PolicySpec,
    ResultRow,
    RuleSpec,
    Subset,
)
from ddsmoothing.runs.store import HEADER, Run, RunWriter, load_header, load_run
from ddsmoothing.sigma.policy import SigmaPolicy
from ddsmoothing.stateless import certify_stateless
from ddsmoothing.stateless.certify import check_stateless
from ddsmoothing.streams import checked_seed

PIXELS, UNITS = "pixels in [0, 1]", "those of the input"
GROUP_SECONDS = 10.0  # about the time between two moments at which rows reach the disk
FIRST_GROUP, LARGEST_GROUP = 4, 64  # inputs
GROUP_NUMBERS = 2**26  # in the inputs of a group made large for many workers, at most


class StoppedError(RunError):
    """A run was stopped in order before its first input was finished; the same call continues it."""


class BudgetSpentError(Exception):
    """The time given to a run is over."""


def certify_run(
    smoothed: SmoothedClassifier,
    data: Dataset,
    request: CertifyRequest | None,
    out: str | Path,
    *,
    model_name: str,
    model_id: str | None = None,
    budget: float | None = None,
    offsets: OffsetsNote | None = None,
    command: dict[str, Any] | None = None,
    listeners: Collection[Listener] = (),
    progress: Told = None,
) -> Run:
    """Certify inputs of a data set into a run folder; continue the run if it is there already.

    Args:
        smoothed: The classifier to certify.
        data: A Dataset, or ``(x, y)`` of arrays or tensors.
        request: Which inputs, at which sigma, with how many samples; None continues the run in ``out`` as it was asked
            for. Search noise and certification noise are never shared.
        out: A new or empty folder, or that of the same run, interrupted.
        model_name: How the model was loaded.
        model_id: Names a model that has no hash.
        budget: Stop in order after so many seconds; the run is then partial and can be continued.
        offsets: Where the classifier's class offsets, or a stateless rule, come from; without a request what the run
            says.
        command: Options to keep in the header, for a command line's use.
        listeners: Told what happens, as ``events.jsonl`` is.
        progress: As for ``SmoothedClassifier.certify``.
    Raises:
        InputError: And its kin, before anything is written; ModelError, RunError.
    """
    start, out, data = time.monotonic(), Path(out), as_dataset(data)
    before = load_header(out) if (out / HEADER).exists() else None
    if request is None and before is not None and offsets is None:
        offsets = before.offsets  # the rule itself is held against the header's
    request = _checked(request, before, out)
    sampler, alpha = request.sampler, request.alpha
    rule, ids = smoothed.rule(request.bound), request.ids(data)
    batch = smoothed.prepare(data[ids[:1]][0])
    check_labels(data, ids, smoothed.num_classes)
    policy = request.policy.settled(smoothed)
    policy.check(smoothed, len(ids))
    if policy.one is not None:
        rule.check(policy.one, sampler.largest(), alpha)
    if policy.rule is not None:
        check_stateless(smoothed, policy.rule, sampler, alpha, request.bound, request.randomized)
    if request.label_aware and data.y is None:
        raise InputError("label-aware sampling needs labels, and this data set has none.")
    if request.shard is not None and request.seed is None and before is None:
        raise InputError("the shards of a run share the seed of their noise, expected a seed with the shard.")
    if batch.on_grid[0]:
        check_steps(smoothed.certificate.noise.scale(policy.largest), smoothed.levels)
    smoothed.check_function(batch, policy.largest)
    size = smoothed.block_size or (_block_size(smoothed, batch, request.shard) if before is None else before.block_size)
    smoothed = smoothed.with_block_size(size)
    header = Header(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{p: version(p) for p in ("ddsmoothing", "torch", "numpy")}},
        model=ModelIdentity(name=file_name(model_name), sha256=model_hash(smoothed.model), model_id=model_id),
        data=DataIdentity.model_validate(data.fingerprint()),
        subset=Subset(skip=request.skip, max=request.maximum, size=len(ids), shard=request.shard),
        num_classes=smoothed.num_classes,
        norm=smoothed.certificate.norm,
        level=POINTWISE.name if policy.rule is None else STATELESS.name,
        sigma_policy=policy.kind,
        sigma=policy.one,
        sampler=sampler.name,
        sampler_options=dataclasses.asdict(sampler),
        rule=RuleSpec.model_validate(rule.config() if policy.rule is None else policy.rule.described()),
        offsets=offsets,
        units=_units(request, data),
        randomized=bool(request.randomized),
        label_aware=bool(request.label_aware),
        alpha=float(alpha),
        seed=before.seed if before is not None and request.seed is None else checked_seed(request.seed),
        shape=batch.shape,
        dtype=str(batch.dtype).removeprefix("torch."),
        precision=smoothed.precision,
        channels_last=smoothed.channels_last,
        compiled=smoothed.compiled,
        snap=smoothed.snap,
        levels=smoothed.levels,
        any_range=smoothed.any_range,
        device=str(batch.device),
        numerics=numerics_on(batch.device),
        block_size=size,
        policy=PolicySpec.model_validate(policy.config()),
        behaviour=behaviour(smoothed, data[:BEHAVIOUR_INPUTS][0]),
        config=file_names(command or {}) | class_names(smoothed, data),
    )
    if before is not None:
        header = continued(before, header, out)
    with RunWriter(out, header) as writer:
        tell = Tell((EventLog(out), *listeners))
        kept = KeptCounts(
            out,
            Paced(smoothed.counter(batch.d), size) if smoothed.workers is None else smoothed.counter(batch.d),
            num_classes=header.num_classes,
            seed=header.seed,
            block_size=size,
            finished=writer.done,
            durable=lambda: tell("counts", samples=kept.drawn),
        )
        place = dict(zip(ids, range(len(ids)), strict=True))
        work = _Work(smoothed.with_executor(kept), data, policy, header, sampler, place)
        with heard(smoothed.workers, tell), telling(progress, len(ids) * request.forwards, "certifying") as told:
            _certify_all(work, writer, kept, tell, None if budget is None else start + budget, told)
    if not writer.done:
        raise StoppedError(
            "the budget was spent before the first input was finished; "
            + ("give more." if not kept.drawn + kept.found else "its counts are kept, the same command continues.")
        )
    return load_run(out)


def _checked(request: CertifyRequest | None, before: Header | None, out: Path) -> CertifyRequest:
    """The request as it is, or that of the run which is continued."""
    if isinstance(request, CertifyRequest):
        return request
    if request is not None:
        raise InputError(
            f"the request is {request!r}, expected CertifyRequest(sigma, ..), such as CertifyRequest(0.25)."
        )
    if before is None:
        raise InputError(f"{out} holds no run that could be continued, expected a CertifyRequest.")
    return CertifyRequest.of(before)


def _units(request: CertifyRequest, data: Dataset) -> str:
    """Of sigma and radii, as results say them."""
    if request.units:
        return request.units
    return PIXELS if data.transform.endswith(("x/255", "x/65535")) else UNITS


def _block_size(smoothed: SmoothedClassifier, batch: Batch, shard: tuple[int, int] | None) -> int:
    """What a probe finds; for shards and workers, whose machines may differ, what follows from the input's size."""
    here = shard is None and smoothed.workers is None
    return smoothed.probe_block_size(batch) if here else smoothed.block_rows(batch.d)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is needed to certify any group of inputs; place: of each id in the run."""

    smoothed: SmoothedClassifier
    data: Dataset
    policy: SigmaPolicy
    header: Header
    sampler: Sampler
    place: dict[int, int]

    def rows(self, group: list[int], progress: Progress | None) -> list[ResultRow]:
        """Choose sigma for these ids, certify them, and make their rows."""
        x, y = self.data[group]
        header, labels = self.header, None if self.data.y is None else y.tolist()
        asked: dict[str, Any] = {"alpha": header.alpha, "seed": header.seed, "ids": group, "progress": progress}
        same = asked | {"labels": labels if header.label_aware else None}
        if self.policy.rule is not None:
            numbers = {name: header.sampler_options[name] for name in ("n0", "n")}
            return rows_of(certify_stateless(self.smoothed, x, self.policy.rule, **numbers, **same), labels)
        places, n = [self.place[i] for i in group], self.sampler.largest()
        sigma, found = self.policy.choose(self.smoothed, x, places, n=n, **asked)
        result = self.smoothed.certify(
            x,
            sigma,
            sampler=self.sampler,
            bound=header.bound,
            randomized=header.randomized,
            **same,
        )
        return rows_of(result, labels, found)


def _certify_all(
    work: _Work,
    writer: RunWriter,
    kept: KeptCounts,
    tell: Listener,
    deadline: float | None,
    progress: Progress | None,
) -> None:
    """Certify what is left and say how it ended."""

    def report(samples: int) -> None:
        writer.lock.stamp()
        if deadline is not None and time.monotonic() > deadline:
            raise BudgetSpentError
        if progress is not None:
            progress(samples)

    left = [i for i in work.place if i not in writer.done]
    if left:
        inputs = len(work.place)
        tell("start", inputs=inputs, done=inputs - len(left), kept=kept.found, seed=work.header.seed)
    try:
        with kept:  # on whatever way out, what was counted is on disk before the end is told
            _certify_groups(work, left, writer, kept, tell, report)
    except BudgetSpentError:
        tell("stopped", why="the budget is spent")
        return
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            tell("stopped", why="interrupted")
        else:
            tell("failed", error=f"{type(error).__name__}: {error}")
        raise
    writer.sort()
    kept.remove()
    if left:
        tell("done")


def _certify_groups(
    work: _Work, left: list[int], writer: RunWriter, kept: KeptCounts, tell: Listener, report: Progress
) -> None:
    """Group after group; the size of groups follows their duration, and the results do not depend on it."""
    fewest, done = _fewest(work, left), 0
    size = max(FIRST_GROUP, fewest)
    while done < len(left):
        start = time.monotonic()
        group = left[done : done + size]
        rows = work.rows(group, report)
        writer.append(rows)
        kept.forget(group)  # only now: their rows are on disk
        mean = sum(row.radius for row in rows) / len(rows)
        tell("rows", inputs=len(rows), done=len(writer.done), samples=kept.drawn, mean_radius=mean)
        done += len(group)
        seconds = (time.monotonic() - start) / len(group)
        size = max(fewest, min(LARGEST_GROUP, 2 * size, int(GROUP_SECONDS / max(seconds, 1e-9))))


def _fewest(work: _Work, left: list[int]) -> int:
    """Inputs of a group, at least: with workers two for each, or many wait at the end of each round of questions."""
    if work.smoothed.workers is None or not left:
        return 1
    return max(1, min(2 * work.smoothed.workers.size, GROUP_NUMBERS // work.data[left[:1]][0].numel()))
