"""Files of what was fitted: JSON, bound to a model and a data set, with the figures of both sides.

It fits nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddsmoothing.claims import PairTable
from ddsmoothing.errors import DataError, InputError, first_error
from ddsmoothing.files import write_durably

DIGITS: Final = 16  # of an input's SHA-256: enough to know it again
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sigma = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(_Strict):
    """What certificates of held-out inputs said.

    Attributes:
        acr: mean radius of right certificates, each capped at the largest one without offsets.
        accuracy: share certified right.   certified: share certified right at each of ``radii``.
        radii: in the units of the input.   abstained: share without an answer.   forwards: samples an input, mean.
        accuracy_by_class: of the inputs of each class, those certified right; certified_by_class: the same at the first
            radius above 0.   answered_by_class: share of all inputs that got this class.
    """

    acr: Finite
    accuracy: Share
    radii: tuple[Finite, ...]
    certified: tuple[Share, ...]
    abstained: Share
    forwards: Finite
    accuracy_by_class: tuple[Share, ...]
    certified_by_class: tuple[Share, ...]
    answered_by_class: tuple[Share, ...]


class Fitted(_Strict):
    """What every fit keeps.

    Attributes:
        model, data: identity and fingerprint, None where the caller did not name them.   norm: ``l1`` or ``l2``.
        n: samples an input and sigma.   alpha, samples: of the certificates behind the figures.
        favour_accuracy: weight of accuracy against the mean radius in units of the noise.
        inputs: fitted on, the first hex digits of the SHA-256 of each.   held_out: how many the figures are of.
    """

    model: str | None = None
    data: dict[str, str | int] | None = None
    norm: Literal["l1", "l2"]
    n: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)]
    samples: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    favour_accuracy: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    inputs: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...]
    held_out: Annotated[int, Field(ge=1)]

    def seen(self, digests: Sequence[str]) -> int:
        """How many of these inputs it was fitted on, by their SHA-256."""
        return len(set(self.inputs) & {digest[:DIGITS] for digest in digests})

    def check(self, model: str, norm: str, num_classes: int, classes: int) -> None:
        """Raise InputError unless it was fitted for this model, norm and number of classes."""
        if self.norm != norm:
            raise InputError(f"this was fitted for the norm {self.norm}, not {norm}.")
        if classes != num_classes:
            raise InputError(f"this was fitted for {classes} classes, the model has {num_classes}.")
        if self.model is not None and self.model != model:
            raise InputError(f"this was fitted for the model {self.model}, not {model}.")


class OffsetsFile(Fitted):
    """Class offsets and what they did; see ``fit_offsets``.

    Attributes:
        sigma: they were fitted at.   offsets: one a class, in the units of the radius.
        without, figures: held-out figures of the pairwise vote alone, and with the offsets.
    """

    kind: Literal["ddsmoothing-offsets"] = "ddsmoothing-offsets"
    schema_version: Literal[1] = 1
    sigma: Sigma
    offsets: Annotated[tuple[Finite, ...], Field(min_length=2)]
    without: Figures
    figures: Figures


class Fixed(_Strict):
    """The pairwise vote at one sigma, of as many forward passes in all; offsets as for the table, fitted for it."""

    sigma: Sigma
    offsets: tuple[Finite, ...] | None
    figures: Figures


class PairsFile(Fitted):
    """A pair table and what it did, beside every fixed sigma at equal total forward passes; see ``fit_pairs``.

    Attributes:
        sigmas, slots, groups, offsets: of the ``PairTable``.   figures: of held-out inputs.
        fixed: the same for each sigma alone.   pays: no fixed sigma has both its mean radius and its accuracy.
    """

    kind: Literal["ddsmoothing-pairs"] = "ddsmoothing-pairs"
    schema_version: Literal[1] = 1
    sigmas: tuple[Sigma, ...]
    slots: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]
    offsets: tuple[Finite, ...] | None
    figures: Figures
    fixed: tuple[Fixed, ...]
    pays: bool

    @property
    def table(self) -> PairTable:
        """The rule; InputError where the table is none."""
        return PairTable(sigmas=self.sigmas, slots=self.slots, groups=self.groups, offsets=self.offsets, norm=self.norm)


def load_pairs(path: str | Path) -> tuple[PairsFile, str]:
    """Read a pair table and the SHA-256 of its bytes; DataError where it is not one."""
    data = _bytes(path, "pair table")
    try:
        file = PairsFile.model_validate_json(data)
        file.table  # noqa: B018
    except ValidationError as error:
        raise DataError(f"{path} is not a pair table: {first_error(error)}.") from error
    except InputError as error:
        raise DataError(f"{path} is not a pair table: {error}") from error
    return file, hashlib.sha256(data).hexdigest()


def load_offsets(path: str | Path) -> tuple[OffsetsFile, str]:
    """Read an offsets file and the SHA-256 of its bytes; DataError where it is not one."""
    data = _bytes(path, "offsets")
    try:
        return OffsetsFile.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        raise DataError(f"{path} is not an offsets file: {first_error(error)}.") from error


def _bytes(path: str | Path, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the {what} file {path}: {error.strerror}.") from error


def save_fit(file: Fitted, path: str | Path) -> None:
    """Write what was fitted; DataError where that is not possible."""
    try:
        write_durably(Path(path), file.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}.") from error
