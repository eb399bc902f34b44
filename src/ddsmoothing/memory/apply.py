"""A memory over a finished run: what each row's certificate becomes beside those before it, as a new run folder.

It draws nothing: the run's own counts are used, at the alpha that the memory gives to each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ddsmoothing.claims import ABSTAIN
from ddsmoothing.data import Dataset
from ddsmoothing.errors import RunError, StoreError
from ddsmoothing.files import file_names
from ddsmoothing.memory.floor import Floor, check_sigmas, grid_of
from ddsmoothing.memory.inputs import Inputs, binding_of_run, found_at, inputs_of, order_free_cuts
from ddsmoothing.memory.regions import LEVEL_MEMORY, Answer, Found, Regions
from ddsmoothing.memory.risk import Risk
from ddsmoothing.memory.rules import at_centre
from ddsmoothing.memory.store import Store
from ddsmoothing.runs import ResultRow, Run, load_run
from ddsmoothing.runs.schema import MemoryNote
from ddsmoothing.runs.store import RunWriter

Progress = Callable[[int], None]
WRITTEN = 1000  # rows written at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Applied:
    """A run of level ``memory`` and what the memory changed in it.

    Attributes:
        kept, cut, answered, abstained: rows with this reason.   emptied: rows cut until no radius was left.
        flipped: rows answered with another class than the run's own certificate.   gained: rows that had abstained and
            are answered.
    """

    run: Run
    kept: int
    cut: int
    emptied: int
    answered: int
    flipped: int
    gained: int
    abstained: int


def open_store(path: Path, run: Run, data: Dataset, risk: Risk | None) -> Store:
    """The memory at a path, bound to this run's model, data and norm, or a new one.

    Args:
        risk: of a new memory, None for the run's own alpha; an existing one keeps its own.
    """
    binding = binding_of_run(run, data)
    if path.exists() and path.stat().st_size:
        store = Store.open(path)
        store.check(binding)
        if risk is not None and risk != store.risk:
            raise StoreError(f"{path} was started with {store.risk}, got {risk}; leave it out, or start another.")
        return store
    return Store.create(path, binding, risk or Risk(alpha=run.header.alpha))


def apply_memory(
    run: Run,
    data: Dataset,
    store: Store,
    out: str | Path,
    *,
    order_free: bool = False,
    floors: Sequence[Floor] | None = None,
    progress: Progress | None = None,
) -> Applied:
    """Take a run into a memory and write what becomes of its rows to a new run folder of level ``memory``.

    Online (the default) the rows come one after another, by id: a region stored earlier answers or cuts a later one.
    Order-free, all rows at once: conflicting balls shrink in proportion, no class changes, and the order means nothing;
    the memory must be empty.

    Args:
        out: a folder that does not exist or is empty.   floors: of ``order_proof_floor``, to be noted.
        progress: called with rows done since the last call.
    Raises: RunError, InputError, StoreError; nothing is stored then.
    """
    out = Path(out)
    inputs = inputs_of(run, data)
    store.check(inputs.binding)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty; give another --out, or remove it.")
    if store.sealed is not None:
        raise StoreError(f"{store.name} is sealed; nothing can be added.")
    if floors is not None:
        check_sigmas(store, grid_of(run))
    regions = Regions(store)
    with _made(out), store.writing():
        steps = _order_free(run, inputs, regions) if order_free else _online(run, inputs, regions)
        answers = []
        for answer in steps:
            answers.append(answer)
            if progress is not None:
                progress(1)
        least = [None] * len(run) if floors is None else floors
        rows = [
            _row(row, answer, found, store.risk, floor)
            for row, (answer, found), floor in zip(run.rows, answers, least, strict=True)
        ]
        counts = _counts(rows)
        _write(run, store, rows, out, "order-free" if order_free else "online", counts)  # or nothing is stored
    return Applied(run=load_run(out), **counts)


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """The folder, made before anything is stored, and taken away again where nothing was written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write the run folder {out}: {error.strerror}. Choose another --out.") from error
    try:
        yield
    finally:
        if out.exists() and not any(out.iterdir()):
            out.rmdir()


def _online(run: Run, inputs: Inputs, regions: Regions) -> Iterator[tuple[Answer, Found | None]]:
    store = regions.store
    for row, point, sketch in zip(run.rows, inputs.points, inputs.sketches, strict=True):
        inside = regions.look_up(point, sketch)
        if inside is not None:
            yield inside, None
            continue
        attempt = store.reserve()
        found = found_at(run.header, row, store.risk.of(attempt))
        yield regions.settle(point, sketch, found, attempt), found


def _order_free(run: Run, inputs: Inputs, regions: Regions) -> Iterator[tuple[Answer, Found | None]]:
    store, norm, d = regions.store, inputs.binding.norm, inputs.binding.d
    if len(store):
        raise StoreError(f"{store.name} holds {len(store)} regions; the order-free rule needs an empty memory.")
    attempts = [store.reserve() for _ in run.rows]
    found = [found_at(run.header, row, store.risk.of(t)) for row, t in zip(run.rows, attempts, strict=True)]
    cuts = order_free_cuts(inputs, found)
    numbers = list[int | None]()
    for i, (one, cut) in enumerate(zip(found, cuts, strict=True)):
        numbers.append(
            store.append(
                inputs.points[i],
                label=one.prediction,
                radius=cut.radius,
                certified=one.radius,
                sigma=one.sigma,
                attempt=attempts[i],
                evidence=one.evidence,
                sketch=inputs.sketches[i],
            )
            if cut.radius > 0.0
            else None
        )
    for i, (one, cut) in enumerate(zip(found, cuts, strict=True)):
        inside = regions.look_up(inputs.points[i], inputs.sketches[i]) if one.prediction == ABSTAIN else None
        if inside is not None:
            yield inside, one
            continue
        reason = "abstained" if one.prediction == ABSTAIN else "kept" if cut.by is None else "cut"
        yield (
            Answer(
                prediction=one.prediction,
                radius=at_centre(norm, d, cut.radius),
                reason=reason,
                by=None if cut.by is None else numbers[cut.by],
                region=numbers[i],
                certified=one.radius,
                attempt=attempts[i],
                sigma=one.sigma,
            ),
            one,
        )


def _row(row: ResultRow, answer: Answer, found: Found | None, risk: Risk, floor: Floor | None) -> ResultRow:
    """A row of level ``memory``: ``correct`` says that a certificate, of any radius above 0, names the right class."""
    right = None if row.label is None else answer.prediction == row.label and answer.radius > 0.0
    note = MemoryNote(
        kind=answer.reason,
        certified=row.radius if found is None else found.radius,
        prediction=row.prediction,
        by=answer.by,
        region=answer.region,
        attempt=answer.attempt,
        alpha=None if answer.attempt is None else risk.of(answer.attempt),
        floor=None if floor is None else floor.radius if answer.prediction == row.prediction else 0.0,
        floor_measurements=() if floor is None or answer.prediction != row.prediction else floor.measurements,
    )
    changed = {"prediction": answer.prediction, "radius": answer.radius, "correct": right, "reason": answer.reason}
    return row.model_copy(update=changed | {"memory": note})


def _write(run: Run, store: Store, rows: list[ResultRow], out: Path, rule: str, counts: dict[str, int]) -> None:
    memory = {
        "store": None if store.path is None else store.path.name,
        "rule": rule,
        "rows": counts,
        "risk": str(store.risk),
        "regions": len(store),
        "attempts": store.attempts,
        "source": run.name,
        "source_sampler": run.header.sampler,
        "radii_stopped_at_a_target": run.header.sampler == "target",
    }
    changed = {
        "level": LEVEL_MEMORY,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": run.header.config | {"memory": file_names(memory)},
    }
    with RunWriter(out, run.header.model_copy(update=changed)) as writer:
        for start in range(0, len(rows), WRITTEN):
            writer.append(rows[start : start + WRITTEN])


def _counts(rows: list[ResultRow]) -> dict[str, int]:
    notes = [(row, row.memory) for row in rows if row.memory is not None]
    kinds = {kind: sum(note.kind == kind for _, note in notes) for kind in ("kept", "cut", "answered", "abstained")}
    answered = [(row, note) for row, note in notes if note.kind == "answered"]
    return {
        **kinds,
        "emptied": sum(note.kind == "cut" and note.region is None for _, note in notes),
        "flipped": sum(note.prediction not in (ABSTAIN, row.prediction) for row, note in answered),
        "gained": sum(note.prediction == ABSTAIN for _, note in answered),
    }
