"""Sigma files: one sigma an input, bound to the data set and the model they were chosen for.

It knows no search. A file is JSON; inputs are named by their index in the data set, never by position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddsmoothing.errors import DataError, InputError
from ddsmoothing.models import first_error

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
KIND: Final = "ddsmoothing-sigmas"


class SigmaFile(BaseModel):
    """Sigmas by sample id.

    Attributes:
        data: the data set's fingerprint.   model_sha256: None where the model has no hash.
        method: how they were chosen, with its options and seed.   sigma: by sample id, standard deviations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ddsmoothing-sigmas"] = KIND
    schema_version: Literal[1] = 1
    data: dict[str, str | int]
    model_sha256: str | None
    norm: Literal["l1", "l2"]
    method: str
    options: dict[str, Any]
    seed: int | None
    sigma: dict[int, Positive]

    def of(self, ids: list[int]) -> NDArray[np.float64]:
        """``(B,)`` sigmas of these samples; InputError naming the first one that is missing."""
        for i in ids:
            if i not in self.sigma:
                raise InputError(f"the sigma file has no sigma for sample {i}; it holds {len(self.sigma)} samples.")
        return np.array([self.sigma[i] for i in ids], dtype=np.float64)

    def check(self, data: dict[str, str | int], model_sha256: str | None, norm: str) -> None:
        """Raise InputError unless the sigmas were chosen for this data set, model and norm."""
        for what, got, expected in (
            ("data set", data, self.data),
            ("model", model_sha256, self.model_sha256),
            ("norm", norm, self.norm),
        ):
            if got != expected:
                raise InputError(f"the sigma file was made for another {what}: {expected}, not {got}.")


def load_sigmas(path: str | Path) -> SigmaFile:
    """Read a sigma file; DataError where it is not one."""
    try:
        return SigmaFile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the sigma file {path}: {error.strerror}.") from error
    except ValidationError as error:
        raise DataError(f"{path} is not a sigma file: {first_error(error)}.") from error
