"""Levels: what a certificate holds for. Each carries its own words; results of different levels never share a table.

It knows no files and no models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ddsmoothing.errors import InputError, unknown


@dataclass(frozen=True, kw_only=True)
class Level:
    """Which classifier a certificate is about.

    Attributes:
        name: as files and tables show it.
        statement: what one certificate says; ``{likely}`` and ``{ball}`` are filled in.
        one_sigma: the same where one sigma serves every input, None where it makes no difference.
        limits: what it does not say, for a run whose sigma depends on the input.
        perturbation: added to what may be done to an input.
        asks_anew: whatever depends on the input is chosen again at every query.
        from_regions: its rows repeat and cut what regions of a memory say, so that one may serve many inputs.
    """

    name: str
    statement: str
    one_sigma: str | None = None
    limits: tuple[str, ...] = ()
    perturbation: str = ""
    asks_anew: bool = False
    from_regions: bool = False

    def says(self, likely: str, ball: str, fixed: bool) -> str:
        """What one certificate says, in two sentences."""
        text = self.one_sigma if fixed and self.one_sigma is not None else self.statement
        return text.format(likely=likely, ball=ball)


POINTWISE: Final = Level(
    name="pointwise",
    statement=(
        "Each certificate says, {likely}: the smoothed classifier that uses this input's sigma everywhere gives the "
        "certified class {ball}. It says nothing about a system that chooses sigma anew at each query, which may use "
        "another sigma at a perturbed input and answer another class inside the ball."
    ),
    one_sigma=(
        "Each certificate says, {likely}: the smoothed classifier with the run's one sigma gives the certified class "
        "{ball}. One sigma serves every input, so this is one classifier, whatever the query."
    ),
    limits=(
        "Level pointwise is not level stateless: two inputs with different sigmas can have overlapping balls of "
        "different class, and a system that chooses sigma at each query is not certified.",
    ),
)
MEMORY: Final = Level(
    name="memory",
    statement=(
        "Every later query to this memory inside a stored region gets that region's class, and each region lies inside "
        "a certificate that holds {likely}. It protects an input against perturbations that arrive after it was "
        "certified, and says nothing about queries outside the regions."
    ),
    limits=(
        "The memory protects what was certified before a perturbed query comes. Whoever may choose the order of "
        "queries to an open memory can place regions of their own first.",
    ),
    perturbation=", after the input was certified",
    from_regions=True,
)
STATELESS: Final = Level(
    name="stateless",
    statement=(
        "Each certificate says, {likely}: the deployed classifier, which applies its whole rule anew at every query, "
        "gives the certified class {ball}. It is one function of the input: it needs no memory, and what was asked "
        "before changes nothing."
    ),
    limits=(
        "The rule over several sigmas is part of the classifier: a deployed system has to use the same sigmas, the "
        "same table or thresholds, and the same order of steps.",
    ),
    asks_anew=True,
)
LEVELS: Final[dict[str, Level]] = {level.name: level for level in (POINTWISE, MEMORY, STATELESS)}


def level_named(name: str) -> Level:
    """The level of that name; an unknown one is refused."""
    if name not in LEVELS:
        raise InputError(unknown("level", name, LEVELS))
    return LEVELS[name]


def rank(name: str) -> int:
    """Where a level stands in lists of them."""
    return list(LEVELS).index(level_named(name).name)
