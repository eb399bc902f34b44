"""Does a memory's file keep what the rules promise? Everything that can be recomputed is; see also ``store.py``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddsmoothing.errors import InputError, StoreError
from ddsmoothing.memory.records import Region
from ddsmoothing.memory.rules import distance, guard
from ddsmoothing.memory.store import Store

WRITTEN = 2.0**-20  # sketches of another machine may differ so much, relatively, and no more
LARGEST_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked, and what does not hold.

    Attributes:
        regions, attempts: numbers of them.   head: the last hash.   sealed: the seal's, None while open.
        findings: one line each.   pairs: True where the distances of all pairs of regions of different class were
            checked.
    """

    regions: int
    attempts: int
    head: str
    sealed: str | None
    findings: tuple[str, ...]
    pairs: bool

    @property
    def ok(self) -> bool:
        """True where nothing was found."""
        return not self.findings


def verify_store(
    store: Store, *, pairs: bool = True, head: str | None = None, progress: Callable[[int], None] | None = None
) -> Verified:
    """Check pages, tables, hashes, points, sketches, radii, attempts, the seal, and that no two classes' regions meet.

    Who can write the file can make all of that right again, but not for a ``head`` that he did not foresee.

    Args:
        pairs: False leaves the last out, which takes about (regions)^2 / 10^9 seconds.
        head: 64 hexadecimal digits, ``Store.head`` at an earlier time, kept elsewhere: the file must go on from there.
        progress: called with regions done since the last call.
    """
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise InputError(f"the head is {head!r}, expected 64 hexadecimal digits as `memory head` prints them.")
    found = store.integrity()
    with store.reading():
        last, end, sealed = store.start, (store.attempts, len(store)), store.sealed
    seen = head in (None, last.hash.hex(), sealed)
    for record in store.rows.records(last, end):
        if not record.follows(last):
            found.append(f"{record.name}: {last.broken}")
        last = last.past(record)
        seen = seen or head == last.hash.hex()
        if isinstance(record, Region):
            found += _region(store, record, pairs)
            if progress is not None:
                progress(1)
        if len(found) >= LARGEST_SHOWN:
            found.append("and perhaps more")
            break
    else:
        if not seen:
            found.append(
                f"head {head} is not in its chain: this is another memory, or an older copy of the one that had it"
            )
    return Verified(
        regions=end[1],
        attempts=end[0],
        head=sealed or last.hash.hex(),
        sealed=sealed,
        findings=tuple(found),
        pairs=pairs,
    )


def _region(store: Store, region: Region, pairs: bool) -> list[str]:
    found = []
    if not 0.0 < region.radius <= region.certified < np.inf or not region.sigma > 0.0:
        found.append(f"{region.name}: radius {region.radius} of {region.certified} certified at sigma {region.sigma}")
    if not 1 <= region.attempt <= region.after or not 0 <= region.label < store.binding.num_classes:
        found.append(f"{region.name}: attempt {region.attempt} or class {region.label} does not exist")
    try:
        _, _, point = store.ball(region.number)
        fresh, kept = store.sketch.of(point[None])[0], region.sketch
    except (StoreError, InputError) as error:
        return [*found, f"{region.name}: {error}"]
    if np.abs(fresh - kept).max() > WRITTEN * max(1.0, float(np.abs(fresh).max())):
        found.append(f"{region.name}: its sketch is not that of its point")
    return found + _meetings(store, region) * pairs


def _meetings(store: Store, region: Region) -> list[str]:
    """Regions of other classes, stored before this one, that are not clear of it by at least two guards."""
    _, _, point = store.ball(region.number)
    sketch = store.sketch.of(point[None])[0]
    norm, found = store.binding.norm, []
    for other in (store.index.near(sketch, region.radius, not_of=region.label) + 1).tolist():
        if other >= region.number:
            break
        _, held, centre = store.ball(other)
        far = distance(norm, point, centre)
        if region.radius + held > far - 2.0 * guard(norm, store.binding.d, far):
            found.append(f"regions {other} and {region.number} of different classes meet")
    return found
