"""One run: choose sigma, certify, and write each group of rows as soon as it is there.

It is the only place where a sigma policy, a smoothed classifier and a run folder meet. A run whose folder exists is
continued: finished inputs are skipped, an input in progress goes on from its kept counts, and the rest gets the noise
it would have got.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from ddsmoothing.bounds import check_alpha
from ddsmoothing.campaigns.listening import Tell, heard
from ddsmoothing.campaigns.policy import SigmaPolicy, check_labels, checked_policy, subset_ids
from ddsmoothing.campaigns.rows import class_names, rows_of
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
from ddsmoothing.inputs import Batch, check_sigma
from ddsmoothing.models import model_hash
from ddsmoothing.noise import check_steps
from ddsmoothing.plan import Sampler, sampler_for
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
from ddsmoothing.sigma.search import SigmaSearch, search_sigma
from ddsmoothing.stateless import certify_stateless
from ddsmoothing.stateless.certify import check_stateless, divided
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
    policy: SigmaPolicy,
    out: str | Path,
    *,
    model_name: str,
    model_id: str | None = None,
    n0: int | None = None,
    n: int | None = None,
    n_max: int | None = None,
    radii: Sequence[float] | None = None,
    alpha: float = 0.001,
    bound: str = "one-class",
    randomized: bool = False,
    label_aware: bool = False,
    skip: int = 1,
    maximum: int | None = None,
    shard: tuple[int, int] | None = None,
    seed: int | None = None,
    budget: float | None = None,
    units: str | None = None,
    offsets: OffsetsNote | None = None,
    command: dict[str, Any] | None = None,
    listeners: Collection[Listener] = (),
    progress: Told = None,
) -> Run:
    """Certify inputs of a data set into a run folder; continue the run if it is there already.

    Args:
        smoothed: The classifier to certify.
        data: A Dataset, or ``(x, y)`` of arrays or tensors.
        policy: Where each input's sigma comes from (level ``pointwise``), or a stateless rule (level ``stateless``).
        out: A new or empty folder, or that of the same run, interrupted.
        model_name: How the model was loaded.
        model_id: Names a model that has no hash.
        n0: Samples that choose the class (100).
        n: Samples that bound its probability (100,000), for a stateless rule at all its sigmas together; giving it or
            n0 selects the sampler ``exact``.
        n_max: Giving neither selects ``plan``, which takes at most so many (100,000).
        radii: Select ``target``: only whether these are certified.
        alpha: Failure probability of each certificate.
        bound: ``one-class`` or, with a plurality vote, ``two-class``.
        randomized: Use the randomised bound.
        label_aware: Stop inputs whose pilot class is wrong.
        skip: Take every so many-th input. An input's id is its index.
        maximum: At most so many of them.
        shard: ``(i, n)``: only the i-th of n parts of these inputs; give all parts the same seed, then ``merge_runs``.
        seed: Of the noise. One left out is the header's when a run is continued.
        budget: Stop in order after so many seconds; the run is then partial and can be continued.
        units: Of sigma and radii, as results say them, such as ``standard deviations``; None says pixels in [0, 1] for
            images of integers, else that they are those of the input.
        offsets: Where the classifier's class offsets, or a stateless rule, come from.
        command: Options to keep in the header, for a command line's use.
        listeners: Told what happens, as ``events.jsonl`` is.
        progress: As for ``SmoothedClassifier.certify``.
    Raises:
        InputError: And its kin, before anything is written; ModelError, RunError.
    """
    start, out = time.monotonic(), Path(out)
    data, policy = as_dataset(data), checked_policy(policy)
    sampler = divided(policy.rule, n0, n, n_max, radii) if policy.rule else sampler_for(n0, n, n_max, radii)
    rule = smoothed.rule(bound)
    sampler.check(check_alpha(alpha), rule.bound)
    ids = subset_ids(data, skip, maximum, shard)
    batch = smoothed.prepare(data[ids[:1]][0])
    check_labels(data, ids, smoothed.num_classes)
    policy = policy.settled(smoothed)
    policy.check(smoothed, len(ids))
    if policy.rule is not None:
        check_stateless(smoothed, policy.rule, sampler, alpha, bound, randomized)
    if policy.kind == "fixed":
        rule.check(policy.largest, sampler.largest(), alpha)
    if label_aware and data.y is None:
        raise InputError("label-aware sampling needs labels, and this data set has none.")
    before = load_header(out) if (out / HEADER).exists() else None
    if shard is not None and seed is None and before is None:
        raise InputError("the shards of a run share the seed of their noise, expected a seed with the shard.")
    if batch.on_grid[0]:
        check_steps(smoothed.certificate.noise.scale(policy.largest), smoothed.levels)
    smoothed.check_function(batch, policy.largest)
    size = smoothed.block_size or (_block_size(smoothed, batch, shard) if before is None else before.block_size)
    smoothed = smoothed.with_block_size(size)
    header = Header(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{p: version(p) for p in ("ddsmoothing", "torch", "numpy")}},
        model=ModelIdentity(name=file_name(model_name), sha256=model_hash(smoothed.model), model_id=model_id),
        data=DataIdentity.model_validate(data.fingerprint()),
        subset=Subset(skip=skip, max=maximum, size=len(ids), shard=shard),
        num_classes=smoothed.num_classes,
        norm=smoothed.certificate.norm,
        level=POINTWISE.name if policy.rule is None else STATELESS.name,
        sigma_policy=policy.kind,
        sigma=float(policy.sigma) if isinstance(policy.sigma, (int, float)) else None,
        sampler=sampler.name,
        sampler_options=dataclasses.asdict(sampler),
        rule=RuleSpec.model_validate(rule.config() if policy.rule is None else policy.rule.described()),
        offsets=offsets,
        units=file_name(units) if units else PIXELS if data.transform.endswith(("x/255", "x/65535")) else UNITS,
        randomized=randomized,
        label_aware=label_aware,
        alpha=alpha,
        seed=before.seed if before is not None and seed is None else checked_seed(seed),
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
        position = dict(zip(ids, range(len(ids)), strict=True))
        work = _Work(smoothed.with_executor(kept), data, policy, header, sampler, position)
        each = policy.forwards + sampler.largest()
        with heard(smoothed.workers, tell), telling(progress, len(ids) * each, "certifying") as told:
            _certify_all(work, writer, kept, tell, None if budget is None else start + budget, told)
    if not writer.done:
        raise StoppedError(
            "the budget was spent before the first input was finished; "
            + ("give more." if not kept.drawn + kept.found else "its counts are kept, the same command continues.")
        )
    return load_run(out)


def _block_size(smoothed: SmoothedClassifier, batch: Batch, shard: tuple[int, int] | None) -> int:
    """What a probe finds; for shards and workers, whose machines may differ, what follows from the input's size."""
    here = shard is None and smoothed.workers is None
    return smoothed.probe_block_size(batch) if here else smoothed.block_rows(batch.d)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is needed to certify any group of inputs; position: of each id in the run."""

    smoothed: SmoothedClassifier
    data: Dataset
    policy: SigmaPolicy
    header: Header
    sampler: Sampler
    position: dict[int, int]

    def rows(self, group: list[int], progress: Progress | None) -> list[ResultRow]:
        """Choose sigma for these ids, certify them, and make their rows."""
        x, y = self.data[group]
        header, found = self.header, None
        if self.policy.kind == "search":
            found = self._search(x, group, progress)
        labels = None if self.data.y is None else y.tolist()
        same: dict[str, Any] = {"alpha": header.alpha, "seed": header.seed, "ids": group, "progress": progress}
        same["labels"] = labels if header.label_aware else None
        if self.policy.rule is not None:
            numbers = {name: header.sampler_options[name] for name in ("n0", "n")}
            return rows_of(certify_stateless(self.smoothed, x, self.policy.rule, **numbers, **same), labels)
        result = self.smoothed.certify(
            x,
            self._sigma(group) if found is None else found.sigma,
            sampler=self.sampler,
            bound=header.bound,
            randomized=header.randomized,
            **same,
        )
        return rows_of(result, labels, found)

    def _search(self, x: torch.Tensor, group: list[int], progress: Progress | None) -> SigmaSearch:
        assert self.policy.sigma0 is not None
        return search_sigma(
            self.smoothed,
            x,
            **{**self.policy.config(), "sigma0": self.policy.sigma0},
            n=self.sampler.largest(),
            alpha=self.header.alpha,
            seed=self.header.seed,
            ids=group,
            progress=progress,
        )

    def _sigma(self, group: list[int]) -> ArrayLike:
        assert self.policy.sigma is not None
        return check_sigma(self.policy.sigma, len(self.position))[[self.position[i] for i in group]]


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

    left = [i for i in work.position if i not in writer.done]
    if left:
        inputs = len(work.position)
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
