"""One sigma for each pair of classes: a vote that is one function of the input, though its noise depends on it.

``G(x) = A`` iff for every other b ``phi_{A>b}(x) > t_Ab`` at the noise scale ``s_Ab = s_bA`` of that pair. The same
scale on both sides is what makes the answer unique: with two scales both classes of a pair could have all their atoms.
The class comes from a pilot at all sigmas. Only the sigmas of its row are drawn then, in numbers that the pilot fixes,
and every pair's bound has the whole alpha: a radius that is too large means that the bound of the truly smallest pair
failed (intersection-union test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.measurement import Measurement, Tally
from ddsmoothing.claims.offsets import CERTAIN, OffsetPairwise, check_offsets
from ddsmoothing.claims.rules import ABSTAIN, Claim
from ddsmoothing.errors import InfeasibleError, InputError

PARTS: Final = 32  # into which the samples are divided between the sigmas


@dataclass(frozen=True, kw_only=True)
class _Slot(OffsetPairwise):
    """The pairs of one sigma of a table."""

    table: PairTable
    slot: int

    def against(self, top: int) -> NDArray[np.int64]:
        row = self.table.row(top)
        return np.array([b for b in range(len(row)) if b != top and row[b] == self.slot], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """A pairwise vote with a noise scale for each pair of classes.

    Attributes:
        sigmas: the finite set, ascending, standard deviations in the units of the input.
        slots: ``(G, G)``, symmetric: of each pair of groups the index of its sigma; the diagonal is for two classes of
            one group.
        groups: ``(K,)`` the group of each class; where all are different, each class is its own.
        offsets: one a class, in the units of the radius; None for none.
        norm: ``l2`` or ``l1``.
    """

    sigmas: tuple[float, ...]
    slots: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]
    offsets: tuple[float, ...] | None = None
    norm: str = "l2"

    def __post_init__(self) -> None:
        certificate_for(self.norm)
        if not self.sigmas or list(self.sigmas) != sorted(set(self.sigmas)) or not min(self.sigmas) > 0.0:
            raise InputError(f"the sigmas of a pair table are {self.sigmas}, expected positive ones, ascending.")
        table = np.array(self.slots, dtype=object)
        size = len(self.slots)
        if table.shape != (size, size) or any(
            type(k) is not int or not 0 <= k < len(self.sigmas) for k in table.ravel()
        ):
            raise InputError(f"a pair table of {size} groups needs {size} x {size} indices of its sigmas.")
        if (table != table.T).any():
            a, b = np.argwhere(table != table.T)[0]
            raise InputError(
                f"the pair table gives groups {a} and {b} two sigmas; a pair needs one, or two classes could both win."
            )
        if len(self.groups) < 2 or any(type(g) is not int or not 0 <= g < size for g in self.groups):
            raise InputError(f"the groups of {len(self.groups)} classes are not of the table's {size}.")
        if self.offsets is not None:
            check_offsets(self.offsets, len(self.groups))

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.groups)

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
        """What the pilot counts at a sigma."""
        return self.parts[slot].pilot_tally(self.num_classes)

    def margins(self, pilots: Sequence[Measurement]) -> NDArray[np.float64]:
        """``(S, K)`` the smallest estimated margin of each class at each sigma; infinite where it has no pair there."""
        return np.stack([part.margins(pilot) for part, pilot in zip(self.parts, pilots, strict=True)])

    def choose(self, pilots: Sequence[Measurement]) -> int:
        """The class whose smallest margin is largest; of equal ones that with more votes, then the first."""
        margins = self.margins(pilots).min(0).tolist()
        votes = np.sum([pilot.votes for pilot in pilots], axis=0).tolist()
        return max(range(self.num_classes), key=lambda c: (margins[c], votes[c], -c))

    def tally(self, top: int) -> Tally:
        """What is counted to certify this class, at each of its sigmas."""
        return self.parts[0].tally(top)

    def smallest(self, top: int, alpha: float) -> dict[int, int]:
        """By sigma of this class, the fewest samples with which all its pairs there can pass."""
        found = {}
        for slot in self.slots_of(top):
            part = self.parts[slot]
            needed = part.probability_at(part.handicap(top), self.sigmas[slot])
            if needed >= 1.0 - CERTAIN:
                raise InfeasibleError(
                    f"the offsets leave class {top} without any number of samples that certifies it at sigma "
                    f"{self.sigmas[slot]:g}. Use smaller offsets or larger sigmas."
                )
            found[slot] = max(1, math.floor(math.log(alpha) / math.log(needed)) + 1)
        return found

    def check(self, n: int, alpha: float) -> None:
        """Raise InfeasibleError, naming the n that works, if n samples can never certify some class."""
        most = max(sum(self.smallest(top, alpha).values()) for top in range(self.num_classes))
        if n < most:
            raise InfeasibleError(
                f"n={n} samples at alpha={alpha}, divided between the sigmas of a class, can never certify every "
                f"class. Use n >= {most}."
            )

    def allocated(self, pilots: Sequence[Measurement], top: int, n: int, alpha: float) -> dict[int, int]:
        """By sigma of this class, its share of n samples: as the pilot shows it, the sigma that binds gets most.

        A function of the pilot alone, so that every bound keeps the whole alpha.
        """
        found = self.smallest(top, alpha)
        left = n - sum(found.values())
        assert left >= 0, "checked before"
        part = max(1, left // PARTS)
        expected = {slot: self._expected(pilots[slot], slot, top, size, alpha) for slot, size in found.items()}
        while left > 0:
            slot = min(found, key=lambda k: (expected[k], k))
            found[slot] += min(part, left)
            left -= min(part, left)
            expected[slot] = self._expected(pilots[slot], slot, top, found[slot], alpha)
        return found

    def _expected(self, pilot: Measurement, slot: int, top: int, n: int, alpha: float) -> float:
        """The radius that n samples at this sigma will show, if shares are those of the pilot (float64, no claim)."""
        least, rivals = self.parts[slot].bound_by(pilot)
        share = (least[top] + 0.5) / (pilot.n + 1.0)
        lower = betaincinv(n * share, n * (1.0 - share) + 1.0, alpha)
        offsets = self.parts[slot].offsets
        gap = certificate_for(self.norm).estimate(np.array(pilot.sigma), np.array(lower))
        return float(gap) - (offsets[int(rivals[top])] - offsets[top])

    def looked(self, fresh: Sequence[Measurement], top: int, alpha: float) -> tuple[Measurement, ...]:
        """Fresh measurements with their one look each."""
        return tuple(replace(one, looks=(self.parts[one.slot].look(one, top, alpha),)) for one in fresh)

    def claim(
        self,
        pilots: Sequence[Measurement],
        fresh: Sequence[Measurement],
        certificate: Certificate,
        alpha: float,
        moved: float = 0.0,
    ) -> Claim:
        """Class and radius; false with probability at most alpha; errs low.

        Args:
            pilots: at every sigma of the set, in its order; they choose the class.
            fresh: at every sigma of the class's row; nothing is certified where one is missing.
            certificate: the theorem of the noise.   alpha: failure probability.
            moved: how far the input was moved before anything was drawn; errs high.
        """
        top = self.choose(pilots)
        at = {one.slot: one for one in fresh}
        none = Claim(prediction=ABSTAIN, radius=0.0, p_lower=0.0, p_upper=1.0)
        if set(self.slots_of(top)) != set(at):
            return none
        claims = []
        for slot, one in at.items():
            assert one.sigma == self.sigmas[slot], "a measurement at another sigma than its slot's"
            claims.append(self.parts[slot].claim_of(top, one, certificate, alpha, moved))
        least = min(claims, key=lambda claim: claim.radius)
        return least if least.prediction == top else replace(none, p_lower=least.p_lower, p_upper=least.p_upper)

    def answer(self, pilots: Sequence[Measurement], fresh: Sequence[Measurement], alpha: float) -> int:
        """PREDICT: one-sided tests of every pair at its sigma, each at full alpha; all must pass."""
        top = self.choose(pilots)
        bare = [replace(one, tv=0.0, coin=None) for one in self.looked(fresh, top, alpha)]
        return self.claim(pilots, bare, certificate_for(self.norm), alpha).prediction

    def config(self) -> dict[str, Any]:
        """Everything that defines it."""
        return {
            "vote": "pairwise",
            "bound": "one-class",
            "sigmas": list(self.sigmas),
            "slots": [list(row) for row in self.slots],
            "groups": list(self.groups),
            "offsets": None if self.offsets is None else list(self.offsets),
            "norm": self.norm,
        }
