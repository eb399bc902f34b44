"""One run: choose sigma, certify, and write each group of rows as soon as it is there.

It is the only place where a sigma policy, a smoothed classifier and a run folder meet. A run whose folder exists is
continued: finished inputs are skipped, and the rest gets the noise it would have got.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from ddsmoothing.bounds import check_alpha, check_bound
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.models import model_hash
from ddsmoothing.noise import checked_seed
from ddsmoothing.plan import Sampler, sampler_for
from ddsmoothing.runs.policy import SigmaPolicy, check_labels, subset_ids
from ddsmoothing.runs.schema import DataIdentity, Header, ModelIdentity, ResultRow, Subset, rows_of
from ddsmoothing.runs.store import HEADER, Run, RunWriter, load_header, load_run
from ddsmoothing.sampling import Progress
from ddsmoothing.sigma.search import SigmaSearch, search_sigma
from ddsmoothing.smooth import SmoothedClassifier, check_sigma

GROUP_SECONDS = 10.0  # about the time between two moments at which rows reach the disk
FIRST_GROUP, LARGEST_GROUP = 4, 64  # inputs
NOT_COMPARED = {"created", "versions", "config"}  # what may differ when a run is continued


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
    seed: int | None = None,
    budget: float | None = None,
    command: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Certify inputs of a data set into a run folder, level ``pointwise``; continue the run if it is there already.

    Args:
        policy: where each input's sigma comes from; search noise and certification noise are never shared.
        out: a new or empty folder, or that of the same run, interrupted.   model_name: how the model was loaded;
            model_id: names a model that has no hash.   skip, maximum: every so many-th input, at most so many of them.
        label_aware: stop inputs whose pilot class is wrong.   budget: stop in order after so many seconds; the run is
            then partial and can be continued.   command: options to keep in the header, for a command line's use.
        n0, n, n_max, radii, alpha, bound, randomized, seed, progress: as for ``SmoothedClassifier.certify``. An
            input's id is its index. A seed left out is the header's when a run is continued.
    Raises: InputError and its kin before anything is written; ModelError, RunError.
    """
    start, out = time.monotonic(), Path(out)
    sampler = sampler_for(n0, n, n_max, radii)
    sampler.check(check_alpha(alpha), check_bound(bound))
    ids = subset_ids(data, skip, maximum)
    check_labels(data, ids, smoothed.num_classes)
    policy.check(smoothed, len(ids))
    if label_aware and data.y is None:
        raise InputError("label-aware sampling needs labels, and this data set has none.")
    before = load_header(out) if (out / HEADER).exists() else None
    batch = smoothed.prepare(data[ids[:1]][0])
    size = smoothed.block_size or (smoothed.probe_block_size(batch) if before is None else before.block_size)
    smoothed = smoothed.with_block_size(size)
    header = Header(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{p: version(p) for p in ("ddsmoothing", "torch", "numpy")}},
        model=ModelIdentity(name=model_name, sha256=model_hash(smoothed.model), model_id=model_id),
        data=DataIdentity.model_validate(data.fingerprint()),
        subset=Subset(skip=skip, max=maximum, size=len(ids)),
        num_classes=smoothed.num_classes,
        norm=smoothed.certificate.norm,
        level="pointwise",
        sigma_policy=policy.kind,
        sigma=float(policy.sigma) if isinstance(policy.sigma, (int, float)) else None,
        sampler=sampler.name,
        sampler_options=dataclasses.asdict(sampler),
        bound=bound,
        randomized=randomized,
        label_aware=label_aware,
        alpha=alpha,
        seed=before.seed if before is not None and seed is None else checked_seed(seed),
        dtype=str(batch.dtype).removeprefix("torch."),
        precision=smoothed.precision,
        channels_last=smoothed.channels_last,
        compiled=smoothed.compiled,
        snap=smoothed.snap,
        levels=smoothed.levels,
        device=str(batch.device),
        block_size=size,
        policy=policy.config(),
        config=command or {},
    )
    if before is not None:
        header = _continued(before, header, out)
    work = _Work(smoothed, data, policy, header, sampler, dict(zip(ids, range(len(ids)), strict=True)))
    with RunWriter(out, header) as writer:
        left = [i for i in ids if i not in writer.done]
        _certify_all(work, left, writer, None if budget is None else start + budget, progress)
    return load_run(out)


def _continued(before: Header, now: Header, out: Path) -> Header:
    """The header of the run in ``out``; RunError naming what was asked otherwise this time."""
    old, new = (header.model_dump(mode="json") for header in (before, now))
    names = [key for key in old if key not in NOT_COMPARED and old[key] != new[key]]
    if names:
        details = "; ".join(f"{key} was {old[key]}, now {new[key]}" for key in names[:3])
        raise RunError(f"{out} holds another run ({details}). Give another --out, or the same options to continue it.")
    return before


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
        result = self.smoothed.certify(
            x,
            self._sigma(group) if found is None else found.sigma,
            sampler=self.sampler,
            alpha=header.alpha,
            bound=header.bound,
            randomized=header.randomized,
            labels=labels if header.label_aware else None,
            seed=header.seed,
            ids=group,
            progress=progress,
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
    work: _Work, left: list[int], writer: RunWriter, deadline: float | None, progress: Progress | None
) -> None:
    """Certify group after group; the size of groups follows their duration, and the results do not depend on it."""

    def report(samples: int) -> None:
        if deadline is not None and time.monotonic() > deadline:
            raise BudgetSpentError
        if progress is not None:
            progress(samples)

    size, done = FIRST_GROUP, 0
    try:
        while done < len(left):
            start = time.monotonic()
            group = left[done : done + size]
            writer.append(work.rows(group, report))
            done += len(group)
            seconds = (time.monotonic() - start) / len(group)
            size = max(1, min(LARGEST_GROUP, 2 * size, int(GROUP_SECONDS / max(seconds, 1e-9))))
    except BudgetSpentError:
        if not writer.done and not done:
            raise RunError("the budget was spent before the first input was finished; give more.") from None
