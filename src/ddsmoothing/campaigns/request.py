"""What a certification run is asked for: one frozen value, which a file or a run's header gives back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

import numpy as np

from ddsmoothing.bounds import check_alpha, check_bound, check_count
from ddsmoothing.campaigns.subset import subset_ids
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError, RunError, unknown
from ddsmoothing.files import file_name, write_durably
from ddsmoothing.plan import Sampler, sampler_for
from ddsmoothing.runs.schema import Header
from ddsmoothing.sigma.policy import GivenSigmas, SearchedSigma, SigmaPolicy, as_policy
from ddsmoothing.stateless.certify import divided
from ddsmoothing.streams import checked_seed

COUNTS: Final = ("n0", "n", "n_max", "skip", "maximum")


@dataclass(frozen=True)
class CertifyRequest:
    """Which inputs are certified, at which sigma, with how many samples.

    Attributes:
        sigma: A number for all inputs, or a ``SigmaPolicy``.
        n0: Samples that choose the class (100).
        n: Samples that bound its probability (100,000), for a stateless rule at all its sigmas together; giving it or
            n0 selects the sampler ``exact``.
        n_max: Giving neither selects ``plan``, which takes at most so many (100,000).
        radii: Select ``target``: only whether these are certified.
        alpha: Failure probability of each certificate.
        bound: ``one-class`` or, with a plurality vote, ``two-class``.
        randomized: Use the randomised bound.
        label_aware: Stop inputs whose pilot class is wrong.
        skip: Take every so many-th input. An input's id is its index.
        maximum: At most so many of them.
        shard: ``(i, n)``: only the i-th of n parts of these inputs; give all parts the same seed, then ``merge_runs``.
        seed: Of the noise. One left out is drawn, or the run's where it is continued.
        units: Of sigma and radii, as results say them, such as ``standard deviations``; None says pixels in [0, 1] for
            images of integers, else that they are those of the input.

    Raises:
        InputError: A field that is not usable, by name.
    """

    sigma: SigmaPolicy | float
    n0: int | None = None
    n: int | None = None
    n_max: int | None = None
    radii: Sequence[float] | None = None
    alpha: float = 0.001
    bound: str = "one-class"
    randomized: bool = False
    label_aware: bool = False
    skip: int = 1
    maximum: int | None = None
    shard: tuple[int, int] | None = None
    seed: int | None = None
    units: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, SigmaPolicy):
            as_policy(self.sigma)
        for name in COUNTS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_count(value, name))
        if self.skip is None:
            raise InputError("skip is None, expected a whole number, at least 1.")
        for name in ("randomized", "label_aware"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected True or False.")
        object.__setattr__(self, "alpha", check_alpha(self.alpha))
        if not isinstance(self.units, str | None):
            raise InputError(f"units are {self.units!r}, expected a text such as 'standard deviations'.")
        if self.units is not None:
            object.__setattr__(self, "units", file_name(self.units))
        if self.radii is not None:
            object.__setattr__(self, "radii", _floats(self.radii, "radii"))
        if self.shard is not None:
            object.__setattr__(self, "shard", _tuple(self.shard, Integral, "shard", 2))
        if self.seed is not None:
            checked_seed(self.seed)
        self.sampler.check(self.alpha, check_bound(self.bound))

    @property
    def policy(self) -> SigmaPolicy:
        """Where each input's sigma comes from."""
        return as_policy(self.sigma)

    @property
    def sampler(self) -> Sampler:
        """How many samples are drawn."""
        numbers, rule = (self.n0, self.n, self.n_max, self.radii), self.policy.rule
        return sampler_for(*numbers) if rule is None else divided(rule, *numbers)

    @property
    def forwards(self) -> int:
        """Samples an input at most, those that choose its sigma included."""
        return self.policy.forwards + self.sampler.largest()

    def ids(self, data: Dataset) -> list[int]:
        """The inputs of a data set that are certified."""
        return subset_ids(data, self.skip, self.maximum, self.shard)

    @classmethod
    def of(cls, header: Header) -> CertifyRequest:
        """What the run with this header was asked for; RunError where its sigmas are from a file, which is not kept."""
        if header.sigma_policy == GivenSigmas.kind:
            raise RunError("the sigmas of this run are from a file, which is not kept in it; give them again.")
        spec = header.policy.model_dump(exclude={"sha256"})
        options, sampled = header.sampler_options, SAMPLED.get(header.sampler, ())
        if not sampled or any(options.get(key) is None for key in sampled):
            raise RunError(f"the run's sampler {header.sampler!r} with the options {options} is not known here.")
        sigma: SigmaPolicy | float | None = header.sigma
        if sigma is None:
            rule = header.stateless
            sigma = SigmaPolicy.search(**spec) if rule is None else SigmaPolicy.stateless(rule)
        return cls(
            sigma,
            **{key: options[key] for key in sampled},
            alpha=header.alpha,
            bound=header.bound,
            randomized=header.randomized,
            label_aware=header.label_aware,
            skip=header.subset.skip,
            maximum=header.subset.max,
            shard=header.subset.shard,
            seed=header.seed,
            units=header.units,
        )

    @classmethod
    def load(cls, path: str | Path) -> CertifyRequest:
        """Read what ``save`` wrote.

        Args:
            path: A TOML file; ``sigma`` is a number, a list of numbers, or a table with what ``SigmaPolicy.search``
                takes.
        Raises:
            InputError: It cannot be read, or a field is unknown or not usable.
        """
        try:
            values = tomllib.loads(Path(path).read_bytes().decode())
        except OSError as error:
            raise InputError(f"cannot read the request {path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of too many digits
            raise InputError(f"{str(path)!r} is not TOML: {error}.") from error
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"{path}: {unknown('field', name, known)}")
        if "sigma" not in values:
            raise InputError(f"{path} has no sigma, expected a number, a list or a table with sigma0.")
        return cls(**{**values, "sigma": _policy(values["sigma"])})

    def save(self, path: str | Path) -> Path:
        """Write it as TOML, by hand to be changed; fields that have their default are left out."""
        policy = self.policy
        sigma: Any = policy.one
        if isinstance(policy, SearchedSigma):
            sigma = {key: value for key, value in policy.config().items() if value is not None}
        elif isinstance(policy, GivenSigmas):
            sigma = policy.sigma.tolist()
        elif policy.rule is not None:
            raise InputError("a stateless rule has a file of its own, expected a number, a search or given sigmas.")
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        lines = {f.name: given[f.name] for f in fields(self)[1:] if given[f.name] != f.default}
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in {"sigma": sigma, **lines}.items())
        write_durably(Path(path), text)
        return Path(path)


SAMPLED: Final = {  # what sampler_for takes for each
    "exact": ("n0", "n"),
    "divided": ("n0", "n"),
    "plan": ("n_max",),
    "target": ("radii",),
}


def _policy(value: Any) -> Any:
    """A sigma as a file has it: of a table or a list the policy, anything else as it is."""
    if isinstance(value, Mapping):
        if not {"sigma0"} <= set(value) <= {"sigma0", "sigma_min", "sigma_max", "sigma_grid"}:
            raise InputError(
                f"sigma is {dict(value)}, expected sigma0 and, if wanted, sigma_min, sigma_max, sigma_grid."
            )
        return SigmaPolicy.search(**value)
    if isinstance(value, list):
        return SigmaPolicy.given(np.array(_floats(value, "sigma")))
    return value


def _tuple(values: Any, kind: type, name: str, size: int | None = None) -> tuple[Any, ...]:
    """Numbers as a tuple."""
    try:
        found = tuple(values)
    except TypeError:
        found = (None,)
    wrong = any(not isinstance(value, kind) or isinstance(value, bool) for value in found)
    if wrong or size not in (None, len(found)):
        raise InputError(f"{name} is {values!r}, expected {size or 'a list of'} numbers.")
    return found


def _floats(values: Any, name: str) -> tuple[float, ...]:
    """The same as float64, as a header keeps them."""
    try:
        return tuple(map(float, _tuple(values, Real, name)))
    except OverflowError:
        raise InputError(f"{name} has a number that is too large for a float.") from None


def _toml(value: Any) -> str:
    """A number, a truth value, a text, a list or a table as TOML, whose lists, numbers and texts are those of JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    plain = value.item() if isinstance(value, np.generic) else value
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
