"""Does a memory's file keep what the rules promise? Everything that can be recomputed is; see also ``store.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddsmoothing.errors import StoreError
from ddsmoothing.memory.rules import distance, guard
from ddsmoothing.memory.store import START, Store

WRITTEN = 2.0**-20  # sketches of another machine may differ so much, relatively, and no more
LARGEST_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked, and what does not hold.

    Attributes:
        regions, attempts: numbers of them.   sealed: the hash, None while open.   findings: one line each.
        pairs: True where the distances of all pairs of regions of different class were checked.
    """

    regions: int
    attempts: int
    sealed: str | None
    findings: tuple[str, ...]
    pairs: bool

    @property
    def ok(self) -> bool:
        """True where nothing was found."""
        return not self.findings


def verify_store(store: Store, *, pairs: bool = True, progress: Callable[[int], None] | None = None) -> Verified:
    """Check pages, hashes, points, sketches, radii, attempts, the seal, and that no two classes' regions meet.

    Args:
        pairs: False leaves the last out, which takes about (regions)^2 / 10^9 seconds.   progress: called with regions
            done since the last call.
    """
    found = list(store.integrity())
    attempts, sealed = store.attempts, store.sealed
    before = START
    for region in store.regions():
        where = f"region {region.number}"
        if region.hash != region.hash_after(before):
            found.append(f"{where}: its hash does not follow from what is stored")
        before = region.hash
        if not 0.0 < region.radius <= region.certified:
            found.append(f"{where}: radius {region.radius} of {region.certified} certified")
        if not 1 <= region.attempt <= attempts or not 0 <= region.label < store.binding.num_classes:
            found.append(f"{where}: attempt {region.attempt} or class {region.label} does not exist")
        try:
            _, _, point = store.ball(region.number)
        except StoreError as error:
            found.append(str(error))
            continue
        fresh, kept = store.sketch.of(point[None])[0], region.sketch
        if np.abs(fresh - kept).max() > WRITTEN * max(1.0, float(np.abs(fresh).max())):
            found.append(f"{where}: its sketch is not that of its point")
        if pairs:
            found += _meetings(store, region.number, region.label, region.radius)
        if progress is not None:
            progress(1)
        if len(found) >= LARGEST_SHOWN:
            found.append("and perhaps more")
            break
    if sealed is not None and store.content_hash() != sealed:
        found.append("the seal does not match what is stored")
    return Verified(regions=len(store), attempts=attempts, sealed=sealed, findings=tuple(found), pairs=pairs)


def _meetings(store: Store, number: int, label: int, radius: float) -> list[str]:
    """Regions of other classes, stored before this one, that are not clear of it by at least two guards."""
    _, _, point = store.ball(number)
    sketch = store.sketch.of(point[None])[0]
    norm, found = store.binding.norm, []
    for other in (store.index.near(sketch, radius, not_of=label) + 1).tolist():
        if other >= number:
            break
        _, held, centre = store.ball(other)
        far = distance(norm, point, centre)
        if radius + held > far - 2.0 * guard(norm, store.binding.d, far):
            found.append(f"regions {other} and {number} of different classes meet")
    return found
