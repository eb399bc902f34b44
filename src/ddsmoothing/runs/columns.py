"""The arrays of a run's rows that every table and figure is made from. It knows no files and no bounds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.errors import RunError
from ddsmoothing.shown import Rows, inputs_text

TABLE: Final = ("id", "label", "prediction", "correct", "radius", "sigma", "p_lower", "samples", "seconds", "reason")


class Columns(Rows):
    """Rows by id, seen as arrays; what a ``Run`` and an ``Imported`` have in common.

    Attributes:
        path: the folder they are from.
        header: its header.
        rows: one for each input, by id.
    """

    path: Path
    header: Any
    rows: tuple[Any, ...]

    _each: ClassVar = ("rows",)

    def _line(self) -> str:
        found = [f"{type(self).__name__} {self.name}: {inputs_text(len(self))}{' (partial)' if self.partial else ''}"]
        found += self._about()
        found.append(f"{self.header.norm.upper()}, level {self.level}")
        labelled = len(self) and all(row.label is not None for row in self.rows)
        if labelled and not self.stops_at_radius:
            found.append(f"ACR {floor_text(float(np.mean(np.where(self.correct, self.radius, 0.0))), 3)}")
        return ", ".join(found)

    @property
    def partial(self) -> bool:
        """True where inputs are missing."""
        return False

    @property
    def stops_at_radius(self) -> bool:
        """True where sampling stopped at a wanted radius, so that ACR means nothing."""
        return False

    def _about(self) -> list[str]:
        """What it was made of, in a few words."""
        raise NotImplementedError

    def _columns(self) -> dict[str, NDArray[Any]]:
        names = [name for name in TABLE if not self.rows or hasattr(self.rows[0], name)]
        return {name: np.array([getattr(row, name) for row in self.rows], dtype=object) for name in names}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def level(self) -> str:
        """What the certificates hold for."""
        return str(self.header.level)

    def column(self, name: str, dtype: Any) -> NDArray[Any]:
        """``(B,)`` one field of all rows."""
        return np.array([getattr(row, name) for row in self.rows], dtype=dtype)

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """``(B,)``."""
        return self.column("id", np.uint64)

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)``, -1 where abstained."""
        return self.column("prediction", np.int64)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained; of imported results as rounded in their file."""
        return self.column("radius", np.float64)

    @cached_property
    def sigma(self) -> NDArray[np.float64]:
        """``(B,)`` standard deviation of the noise; NaN where an imported file does not say."""
        return self.column("sigma", np.float64)

    @cached_property
    def label(self) -> NDArray[np.int64]:
        """``(B,)``; RunError where the run had no labels."""
        self.need_labels()
        return self.column("label", np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(B,)`` True where a certificate names the right class; RunError where the run had no labels."""
        self.need_labels()
        return self.column("correct", np.bool_)

    def need_labels(self) -> None:
        """Raise RunError if the run had no labels."""
        if any(row.label is None for row in self.rows):
            raise RunError(f"{self.path} was made without labels, so nothing can be said about its accuracy.")
