"""Several networks as one base classifier that takes sigma: each serves a range of it. It loads nothing but a list.

Each sigma has one network, so every certificate is about one network alone, and together they are one classifier.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from ddsmoothing.counting.engine import at_sigma
from ddsmoothing.errors import InputError, ModelError, first_error
from ddsmoothing.models.denoised import checked_range

PREFIX: Final = "by-sigma:"


class BySigma(nn.Module):
    """``f(x, sigma)`` is what the network of that sigma answers: the first whose upper end is not below sigma.

    Every network that a block of rows needs runs on the whole block, and each row takes its own network's answer. So a
    row's logits are those that its network alone would give in a block of this shape, whatever sigmas stand beside it:
    the counts of an input do not depend on what it was packed with. (Smaller blocks, one for each network, would be
    cheaper where sigmas are mixed; but the kernels that multiply them are chosen by their size, and round otherwise.)
    A block of one network's sigmas costs one pass, a mixed one as many as there are networks in it.

    Args:
        ranges: ``(upper, network)``, upper ends ascending, the last infinite; networks may take sigma or not.
        sigma_range: the least and the largest sigma to be searched by default; None leaves it to sigma0.
    Raises: InputError.
    """

    takes_sigma = True

    def __init__(
        self, ranges: Sequence[tuple[float, nn.Module]], *, sigma_range: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        uppers = tuple(float(upper) for upper, _ in ranges)
        ascending = len(uppers) > 0 and uppers[0] > 0 and all(a < b for a, b in pairwise(uppers))
        if not ascending or uppers[-1] != math.inf:
            raise InputError(
                f"the upper ends of sigma are {list(uppers)}, expected ascending numbers, the last infinite."
            )
        if bare := [type(network).__name__ for _, network in ranges if not isinstance(network, nn.Module)]:
            raise InputError(f"a network is a {bare[0]}, expected modules, whose weights can be hashed.")
        self.networks = nn.ModuleList(network for _, network in ranges)
        self.uppers, self.sigma_range = uppers, checked_range(sigma_range)
        # Sigma comes as float32, so that is what it is compared in: 0.4 belongs to a range that ends at 0.4.
        self._ends = torch.tensor(uppers[:-1], dtype=torch.float32)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, K)``.

        Args:
            x: ``(B, ...)``.
            sigma: ``(B,)`` float32, standard deviation.
        Raises: ModelError where the networks differ in the number of classes.
        """
        owner = torch.bucketize(sigma.detach().float().contiguous(), self._ends.to(sigma.device))
        logits: torch.Tensor | None = None
        for i in sorted(set(owner.tolist())):
            answer = at_sigma(self.networks[i], sigma)(x)
            if logits is not None and answer.shape != logits.shape:
                raise ModelError(
                    f"the networks of a BySigma answer {tuple(logits.shape)} and {tuple(answer.shape)}, expected the "
                    "same classes."
                )
            logits = answer if logits is None else torch.where((owner == i)[:, None], answer, logits)
        assert logits is not None
        return logits

    def extra_repr(self) -> str:
        """What is no weight of any network."""
        return f"uppers={self.uppers}, sigma_range={self.sigma_range}"


class Range(BaseModel):
    """One network of a file and the upper end of its sigmas.

    Attributes:
        upper: that end; ``inf`` for the last.
        model: a shipped name, a file of weights, or an architecture; never code.
        weights: a file, for an architecture.   arch, normalize, num_classes: as on the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    upper: Annotated[float, Field(gt=0)]
    model: str
    weights: str | None = None
    arch: str | None = None
    normalize: str = "auto"
    num_classes: int | None = None


class Ranges(BaseModel):
    """What a file of ranges says: ``[[range]]`` tables, and the sigmas to be searched.

    Attributes:
        range: one for each network.   sigma_range: see ``BySigma``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    range: tuple[Range, ...] = Field(min_length=1)
    sigma_range: tuple[float, float] | None = None


def read_ranges(path: Path) -> Ranges:
    """The ranges of a TOML file, files named in it taken from its folder.

    Raises: ModelError.
    """
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        ranges = Ranges.model_validate(found)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}.") from error
    except ValidationError as error:
        raise ModelError(f"{path} does not say ranges of sigma: {first_error(error)}.") from error
    except (ValueError, RecursionError) as error:  # not TOML, or not text
        raise ModelError(f"{path} is not a TOML file: {error}.") from error

    def placed(name: str | None) -> str | None:
        return str(path.parent / name) if name is not None and (path.parent / name).is_file() else name

    changed = (
        one.model_copy(update={"model": placed(one.model), "weights": placed(one.weights)}) for one in ranges.range
    )
    return ranges.model_copy(update={"range": tuple(changed)})
