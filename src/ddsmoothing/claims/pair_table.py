"""One sigma for each pair of classes: a vote that is one function of the input, though its noise depends on it.

``G(x) = A`` iff for every other b ``phi_{A>b}(x) > t_Ab`` at the noise scale ``s_Ab = s_bA`` of that pair. The same
scale on both sides is what makes the answer unique: with two scales both classes of a pair could have all their atoms.
The class comes from a pilot at all sigmas, and only the sigmas of its row are drawn then. Every pair's bound has the
whole alpha: a radius that is too large means that the bound of the truly smallest pair failed (intersection-union
test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.measurement import Measurement, Tally
from ddsmoothing.claims.offsets import OffsetPairwise, check_offsets
from ddsmoothing.claims.several import Atom, Commitment, StatelessRule, check_sigmas, fewest_at, plain_numbers
from ddsmoothing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class _Slot(OffsetPairwise):
    """The pairs of one sigma of a table."""

    table: PairTable
    slot: int

    def against(self, top: int) -> NDArray[np.int64]:
        held = self.table.row(top) == self.slot
        held[top] = False
        return np.flatnonzero(held)


@dataclass(frozen=True, kw_only=True)
class PairTable(StatelessRule):
    """A pairwise vote with a noise scale for each pair of classes.

    Attributes:
        sigmas: the finite set, ascending, standard deviations in the units of the input.
        slots: ``(G, G)``, symmetric: of each pair of groups the index of its sigma; the diagonal is for two classes of
            one group.
        groups: ``(K,)`` the group of each class; where all are different, each class is its own.
        offsets: one a class, in the units of the radius; None for none.
        norm: ``l2`` or ``l1``.
    """

    kind = "pairs"
    words = "pair table"
    vote = "pairwise"
    sigmas: tuple[float, ...]
    slots: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]
    offsets: tuple[float, ...] | None = None
    norm: str = "l2"

    def __post_init__(self) -> None:
        certificate_for(self.norm)
        object.__setattr__(self, "sigmas", plain_numbers(self.sigmas, "the sigmas of a pair table"))
        check_sigmas(self.sigmas, "a pair table", ascending=True)
        table = np.array(self.slots, dtype=object)
        size = len(table) if table.ndim else 0
        if table.shape != (size, size) or any(
            type(k) is not int or not 0 <= k < len(self.sigmas) for k in table.ravel()
        ):
            raise InputError(f"a pair table of {size} groups needs {size} x {size} indices of its sigmas.")
        if (table != table.T).any():
            a, b = np.argwhere(table != table.T)[0]
            raise InputError(
                f"the pair table gives groups {a} and {b} two sigmas; a pair needs one, or two classes could both win."
            )
        groups = np.array(self.groups, dtype=object).tolist()
        if (
            not isinstance(groups, list)
            or len(groups) < 2
            or any(type(g) is not int or not 0 <= g < size for g in groups)
        ):
            raise InputError(f"the groups of classes are {self.groups!r}, expected one of the table's {size} for each.")
        object.__setattr__(self, "slots", tuple(map(tuple, table.tolist())))
        object.__setattr__(self, "groups", tuple(groups))
        if self.offsets is not None:
            object.__setattr__(self, "offsets", check_offsets(self.offsets, len(groups)))

    @classmethod
    def one(cls, sigma: float, offsets: Sequence[float], norm: str = "l2") -> PairTable:
        """One sigma for all pairs: a pairwise vote with these offsets, one a class."""
        size = len(offsets)
        return cls(
            sigmas=(sigma,), slots=((0,) * size,) * size, groups=tuple(range(size)), offsets=tuple(offsets), norm=norm
        )

    @property
    def num_classes(self) -> int:
        return len(self.groups)

    @property
    def given_offsets(self) -> tuple[float, ...] | None:
        return self.offsets

    def row(self, top: int) -> NDArray[np.int64]:
        """``(K,)`` of each class the index of the sigma at which this one is held against it."""
        found: NDArray[np.int64] = self._array[self.groups[top], np.array(self.groups)]
        return found

    @cached_property
    def _array(self) -> NDArray[np.int64]:
        return np.array(self.slots, dtype=np.int64)

    def slots_of(self, top: int) -> tuple[int, ...]:
        """Which sigmas certify this class, ascending."""
        return tuple(np.unique(np.delete(self.row(top), top)).tolist())

    @cached_property
    def parts(self) -> tuple[OffsetPairwise, ...]:
        """The pairs of each sigma, as a vote of their own."""
        offsets = self.offsets or (0.0,) * self.num_classes
        return tuple(_Slot(table=self, slot=k, offsets=offsets, norm=self.norm) for k in range(len(self.sigmas)))

    def pilot_tally(self, slot: int) -> Tally:
        return self.parts[slot].pilot_tally(self.num_classes)

    def margins(self, pilots: Sequence[Measurement]) -> NDArray[np.float64]:
        """``(S, K)`` the smallest estimated margin of each class at each sigma; infinite where it has no pair there."""
        return np.stack([part.margins(pilot) for part, pilot in zip(self.parts, pilots, strict=True)])

    def commit(self, pilots: Sequence[Measurement]) -> Commitment:
        """The class whose smallest margin is largest; of equal ones that with more votes, then the first."""
        margins = self.margins(pilots).min(0).tolist()
        votes = np.sum([pilot.votes for pilot in pilots], axis=0).tolist()
        top = max(range(self.num_classes), key=lambda c: (margins[c], votes[c], -c))
        return Commitment(top, self.slots_of(top))

    def tally(self, top: int, slot: int) -> Tally:
        return self.parts[slot].tally(top)

    def fewest(self, made: Commitment, slot: int, alpha: float) -> int:
        return self._fewest(made.top, slot, alpha)

    def _fewest(self, top: int, slot: int, alpha: float) -> int:
        part = self.parts[slot]
        needed = part.probability_at(part.handicap(top), self.sigmas[slot])
        return fewest_at(needed, alpha, f"the offsets that class {top} is held against", self.sigmas[slot])

    def most_needed(self, alpha: float) -> int:
        return max(
            sum(self._fewest(top, slot, alpha) for slot in self.slots_of(top)) for top in range(self.num_classes)
        )

    def binding(self, made: Commitment, pilot: Measurement) -> tuple[int, float]:
        part = self.parts[pilot.slot]
        return part.fewest(pilot, made.top), part.threshold(pilot, made.top)

    def events(self, made: Commitment, one: Measurement) -> tuple[int, ...]:
        """The wins of the pilots' class against each other one."""
        return self.parts[one.slot].counts(one, made.top)

    def atom(self, made: Commitment, one: Measurement, certificate: Certificate, alpha: float) -> Atom:
        p_lower, p_upper, margin = self.parts[one.slot].least(one, made.top, certificate, alpha)
        return Atom(margin, p_lower, p_upper)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "sigmas": list(self.sigmas),
            "slots": [list(row) for row in self.slots],
            "groups": list(self.groups),
        }
