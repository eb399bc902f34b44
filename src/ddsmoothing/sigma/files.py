"""Sigma files: one sigma an input, bound to the data set and the model they were chosen for.

It knows no search. A file is JSON; inputs are named by their index in the data set, never by position.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddsmoothing.errors import DataError, InputError, first_error
from ddsmoothing.files import write_durably
from ddsmoothing.inputs import check_sigma

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
KIND: Final = "ddsmoothing-sigmas"


class SigmaFile(BaseModel):
    """Sigmas by sample id.

    Attributes:
        data: the data set's fingerprint.   model: its identity (hash, or id where it has none).
        method: how they were chosen, with its options and seed.   sigma: by sample id, standard deviations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ddsmoothing-sigmas"] = KIND
    schema_version: Literal[1] = 1
    data: dict[str, str | int | None]
    model: str
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

    def is_of(self, data: dict[str, str | int | None]) -> bool:
        """Whether the sigmas were chosen for the inputs of this data set; no label has a part in them."""
        return all(self.data.get(key) == value for key, value in data.items() if key != "labels_sha256")

    def check(self, data: dict[str, str | int | None], model: str, norm: str) -> None:
        """Raise InputError unless the sigmas were chosen for this data set, model and norm."""
        for what, same, got, expected in (
            ("data set", self.is_of(data), data, self.data),
            ("model", model == self.model, model, self.model),
            ("norm", norm == self.norm, norm, self.norm),
        ):
            if not same:
                raise InputError(f"the sigma file was made for another {what}: {expected}, not {got}.")


def load_sigmas(path: str | Path) -> SigmaFile:
    """Read a sigma file; DataError where it is not one."""
    try:
        return SigmaFile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the sigma file {path}: {error.strerror}.") from error
    except ValidationError as error:
        raise DataError(f"{path} is not a sigma file: {first_error(error)}.") from error


def save_sigmas(file: SigmaFile, path: str | Path) -> None:
    """Write a sigma file; DataError where that is not possible."""
    try:
        write_durably(Path(path), file.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write the sigma file {path}: {error.strerror}.") from error


def import_tensor(path: str | Path, ids: list[int], length: int) -> NDArray[np.float64]:
    """The thetas of these samples from the 1-D tensor of 2021.

    Its position is the index in the data set of this length; one made for exactly these samples is taken in order.

    Raises: DataError where it is not a plain tensor of so many positive numbers. No pickled code is run.
    """
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a file of one plain tensor: {reason}") from error
    plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.ndim != 1 or not tensor.is_floating_point():
        got = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise DataError(f"{path} holds {got}, expected a plain 1-D floating-point tensor.")
    if len(tensor) not in (length, len(ids)):
        raise DataError(
            f"{path} holds {len(tensor)} sigmas, expected {length} (one for each sample of the data set) or {len(ids)} "
            "(one for each sample taken)."
        )
    return check_sigma((tensor[ids] if len(tensor) == length else tensor).double(), len(ids))


def export_tensor(thetas: NDArray[np.float64], path: str | Path) -> None:
    """Write thetas as the 1-D float32 tensor of 2021, by position."""
    try:
        write_durably(Path(path), tensor_bytes(torch.from_numpy(thetas.astype(np.float32))))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}.") from error


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor as a file of torch.save holds it."""
    torch.save(tensor, whole := BytesIO())
    return whole.getvalue()
