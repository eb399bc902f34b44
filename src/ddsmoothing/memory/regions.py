"""Points against a store's regions: look-up, reconciliation and the answer. It draws nothing and knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.claims import ABSTAIN
from ddsmoothing.memory import rules
from ddsmoothing.memory.rules import Point
from ddsmoothing.memory.store import Store
from ddsmoothing.shown import Form, Stored, inputs_text

LEVEL_MEMORY: Final = "memory"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A certificate of level ``pointwise``: ABSTAIN (-1) and 0 where there is none.

    Attributes:
        sigma: what it was made at.   evidence: JSON of the counts behind it, kept with its region; may be empty.
    """

    prediction: int
    radius: float
    sigma: float
    evidence: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a memory says of one input.

    Attributes:
        prediction: class, or ABSTAIN (-1).   radius: within it every LATER query to the same memory gets this class;
            0 where nothing is claimed.
        reason: ``answered`` (inside region ``by``, no forward pass), ``kept`` (stored whole), ``cut`` (by region
            ``by``; stored unless nothing was left), ``abstained``, ``uncertified`` (outside a sealed memory), or
            ``outside`` (all regions; nothing was asked of the classifier).
        by: region that answered or cut.   region: the one stored for this input.   certified: radius before the rules.
        attempt, sigma: of the certification made; None without one.
    """

    prediction: int
    radius: float
    reason: str
    by: int | None = None
    region: int | None = None
    certified: float = 0.0
    attempt: int | None = None
    sigma: float | None = None


class AnswersForm(Form):
    """What the JSON of answers holds."""

    rows: tuple[Answer, ...]
    level: Literal["memory"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Answers(Stored):
    """Answers to B inputs, level ``memory``: for later queries to the same memory only.

    Attributes:
        rows: one for each input.
        level: what they hold for.
    """

    rows: tuple[Answer, ...]
    level: str = LEVEL_MEMORY

    _each: ClassVar = ("rows",)
    _form: ClassVar = AnswersForm
    _arrays: ClassVar = {}

    def _line(self) -> str:
        kinds = ", ".join(f"{self.reason.count(kind):,} {kind}" for kind in dict.fromkeys(self.reason))
        return f"Answers to {inputs_text(len(self))}: {kinds or 'none'}; level {self.level}"

    def _columns(self) -> dict[str, NDArray[Any]]:
        names = ("prediction", "radius", "reason", "by", "region", "certified", "sigma")
        return {name: np.array([getattr(row, name) for row in self.rows], dtype=object) for name in names}

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)``, ABSTAIN (-1) where there is none."""
        return np.array([row.prediction for row in self.rows], dtype=np.int64)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` radius of level ``memory``, 0 where nothing is claimed."""
        return np.array([row.radius for row in self.rows])

    @property
    def reason(self) -> tuple[str, ...]:
        """Why each row says what it says."""
        return tuple(row.reason for row in self.rows)


class Regions:
    """Look-up and reconciliation of points against a store: exact, the index only leaves out what is provably far."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._norm, self._d = store.binding.norm, store.binding.d

    def look_up(self, point: Point, sketch: NDArray[np.float32]) -> Answer | None:
        """The answer of the regions that contain a point, of all that were stored by now; None outside all of them.

        Raises: StoreError where regions of different classes contain it: then the file is damaged.
        """
        numbers, labels, far, radii = self._near(point, sketch, 0.0, None)
        held = np.flatnonzero(rules.inside(far, radii))
        if not len(held):
            return None
        if len(set(labels[held].tolist())) > 1:
            met = " and ".join(str(numbers[i]) for i in held)
            raise self.store.database.damaged(f"regions {met}", "those of different classes meet in a point")
        left = [rules.within(self._norm, self._d, float(radii[i]), float(far[i])) for i in held]
        best = int(np.argmax(left))
        return Answer(
            prediction=int(labels[held[best]]), radius=left[best], reason="answered", by=numbers[int(held[best])]
        )

    def reconcile(self, point: Point, sketch: NDArray[np.float32], label: int, certified: float) -> rules.Cut:
        """What may be stored of a certificate; ``by`` is a region's number."""
        numbers, _, far, radii = self._near(point, sketch, certified, label)
        cut = rules.reconciled(self._norm, self._d, certified, far, radii)
        return cut if cut.by is None else rules.Cut(radius=cut.radius, by=numbers[cut.by])

    def _near(
        self, point: Point, sketch: NDArray[np.float32], radius: float, not_of: int | None
    ) -> tuple[list[int], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        with self.store.reading():
            numbers = (self.store.index.near(sketch, radius, not_of=not_of) + 1).tolist()
            balls = [self.store.ball(number) for number in numbers]
        far = [rules.distance(self._norm, point, ball[2]) for ball in balls]
        labels = np.array([ball[0] for ball in balls], dtype=np.int64)
        return numbers, labels, np.array(far), np.array([ball[1] for ball in balls])

    def settle(
        self, point: Point, sketch: NDArray[np.float32], found: Found, attempt: int, *, more_than: float = 0.0
    ) -> Answer:
        """Reconcile a certificate and store what is left, inside ``store.writing``.

        Args:
            more_than: store only what advertises more than this to a later query here (growth inside a region).
        """
        known = {"certified": found.radius, "attempt": attempt, "sigma": found.sigma}
        if found.prediction == ABSTAIN or found.radius <= 0.0:
            return Answer(prediction=found.prediction, radius=0.0, reason="abstained", **known)  # type: ignore[arg-type]
        cut = self.reconcile(point, sketch, found.prediction, found.radius)
        region = None
        if rules.within(self._norm, self._d, cut.radius, 0.0) > more_than:
            region = self.store.append(
                point,
                label=found.prediction,
                radius=cut.radius,
                certified=found.radius,
                sigma=found.sigma,
                attempt=attempt,
                evidence=found.evidence,
                sketch=sketch,
            )
        return Answer(
            prediction=found.prediction,
            radius=0.0 if region is None else rules.at_centre(self._norm, self._d, cut.radius),
            reason="kept" if cut.by is None else "cut",
            by=cut.by,
            region=region,
            **known,  # type: ignore[arg-type]
        )
