"""What a training run is asked for: one frozen model of all options, read from a preset, a TOML file and settings.

It knows no torch and trains nothing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddsmoothing.errors import InputError, unknown
from ddsmoothing.noise import LARGEST_SIGMA
from ddsmoothing.training.presets import PRESETS

Sigma = Annotated[float, Field(gt=0.0, le=LARGEST_SIGMA, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SmoothAdv(_Section):
    """SmoothAdv: the attack. epsilon: L2 radius, pixels in [0, 1]; warmup: epochs over which it grows from zero."""

    epsilon: NotNegative = 64 / 256
    steps: Count = 2
    warmup: Count = 1


class Macer(_Section):
    """MACER: weight (lambda), gamma (the hinge, in units of Phi^-1) and beta (inverse temperature)."""

    weight: NotNegative = 12.0
    gamma: NotNegative = 8.0
    beta: Positive = 16.0


class DataDependent(_Section):
    """Data-dependent training.

    Attributes:
        switch_epoch: sigma moves from this epoch on (the first is 0).   steps: ascent steps for each batch.
        step: their length.   samples: noisy copies in each.   sigma_min, sigma_max: bounds, default sigma / 4 and
            4 sigma.   sigma0_test: where the sigmas of held-out and test samples start, default sigma.
        steps_test: ascent steps on held-out samples at each validation.   steps_after: passes over the test split after
            training, one ascent step for each sample; sigma is saved after every pass.
    """

    switch_epoch: Count = 0
    steps: Count = 1
    step: Positive = 1e-4
    samples: AtLeastOne = 1
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None
    sigma0_test: Sigma | None = None
    steps_test: Count = 0
    steps_after: Count = 0


class TrainConfig(_Section):
    """Every option of a training run; two runs with equal ones give equal models on a CPU.

    Attributes:
        data, model: names as for ``load_data`` (its training split) and ``build_model``.   num_classes: default from
            the labels.   normalize: as for ``build_model``.
        augmentation: as for ``data.augmentation``.   maximum: only the first so many training samples.
        objective: what is minimised.   sigma: of the noise, pixels in [0, 1]; a pair: log-uniform between the two,
            drawn for each sample and epoch.   copies: noisy copies of each input.
        epochs, batch: batch is that of all processes together.   batches: at most so many in an epoch, for a trial.
        lr, momentum, nesterov, weight_decay: of SGD.   schedule: ``step`` (times step_factor every step_epochs epochs),
            ``cosine`` (to zero at the end, for each batch) or ``constant``; warmup: epochs of linear growth from zero.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast.   channels_last: memory format.
        validation: share of the training split that is held out; never the test split.   keep: model and sigma of the
            ``last`` epoch, or of the ``best`` one by accuracy on noisy held-out samples.
        seed: of everything random.   init: a checkpoint or model file to start from, else weights are random;
            init_optimizer: with the state of its optimizer.   sigma_init: a sigma file to start from, of the training
            or the test split.
        smoothadv, macer: of those objectives.   data_dependent: None trains with sigma as it is.
    """

    data: str
    model: str
    num_classes: Annotated[int, Field(ge=2)] | None = None
    normalize: str = "auto"
    augmentation: str = "none"
    maximum: AtLeastOne | None = None
    objective: Literal["gaussian", "smoothadv", "macer"] = "gaussian"
    sigma: Sigma | tuple[Sigma, Sigma] = 0.25
    copies: AtLeastOne = 1
    epochs: AtLeastOne = 90
    batch: AtLeastOne = 256
    batches: AtLeastOne | None = None
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    step_epochs: AtLeastOne = 30
    step_factor: Positive = 0.1
    warmup: NotNegative = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    keep: Literal["last", "best"] = "last"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    init: str | None = None
    init_optimizer: bool = False
    sigma_init: str | None = None
    smoothadv: SmoothAdv = SmoothAdv()
    macer: Macer = Macer()
    data_dependent: DataDependent | None = None

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if isinstance(self.sigma, tuple):
            if not self.sigma[0] < self.sigma[1]:
                raise ValueError(f"sigma is {self.sigma}, expected one number or (low, high) with low < high")
            if self.data_dependent is not None:
                raise ValueError("sigma is a range, expected one number, where data-dependent sigmas start")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0")
        if self.keep == "best" and self.validation == 0.0:
            raise ValueError("keep 'best' needs held-out samples, expected a validation share above 0")
        if self.init_optimizer and self.init is None:
            raise ValueError("init_optimizer needs init, the checkpoint whose optimizer is continued")
        moving = self.data_dependent
        if moving is not None and moving.switch_epoch >= self.epochs:
            raise ValueError(
                f"sigma moves from epoch {moving.switch_epoch} on, but there are {self.epochs} epochs, counted from 0; "
                "expected an earlier switch_epoch"
            )
        low, high = self.sigma_bounds
        test = None if self.data_dependent is None else self.data_dependent.sigma0_test
        for start in (self.sigma_start, self.sigma_start if test is None else test):
            if not low <= start <= high or low == high:
                raise ValueError(f"sigma {start:g} lies outside its bounds [{low:g}, {high:g}]")
        return self

    @property
    def sigma_start(self) -> float:
        """Sigma, or the geometric mean of its range."""
        return self.sigma if isinstance(self.sigma, float) else float((self.sigma[0] * self.sigma[1]) ** 0.5)

    @property
    def sigma_bounds(self) -> tuple[float, float]:
        """What sigma cannot leave."""
        if isinstance(self.sigma, tuple):
            return self.sigma
        asked = self.data_dependent or DataDependent()
        low, high = asked.sigma_min, asked.sigma_max
        return self.sigma / 4 if low is None else low, min(LARGEST_SIGMA, 4 * self.sigma) if high is None else high

    @property
    def passes(self) -> int:
        """Passes over the test split after training."""
        return 0 if self.data_dependent is None else self.data_dependent.steps_after

    def held_out(self, size: int) -> int:
        """How many of so many training samples validate."""
        return round(self.validation * min(size, self.maximum or size))

    def samples(self, size: int) -> int:
        """How many of so many training samples an epoch trains on."""
        left = min(size, self.maximum or size) - self.held_out(size)
        return left if self.batches is None else min(left, self.batches * self.batch)


def resolve(
    *, preset: str | None = None, file: Path | None = None, settings: dict[str, Any] | None = None
) -> TrainConfig:
    """The options of a preset, changed by a TOML file, changed by settings (dotted names allowed).

    Raises: InputError naming the first option that is unknown (with the closest known one) or not usable.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(unknown("preset", preset, PRESETS))
    values: dict[str, Any] = {} if preset is None else _merged({}, PRESETS[preset])
    if file is not None:
        values = _merged(values, read_toml(file))
    for name, value in (settings or {}).items():
        *places, last = name.split(".")
        nested: dict[str, Any] = {last: value}
        for place in reversed(places):
            nested = {place: nested}
        values = _merged(values, nested)
    return checked(values)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's tables; InputError where it is none."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}.") from error


def setting(text: str) -> tuple[str, Any]:
    """``a.b=value`` as a name and a TOML value; what is no TOML value is taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set is {text!r}, expected NAME=VALUE such as macer.weight=12.")
    try:
        return name.strip(), tomllib.loads(f"x = {value}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return name.strip(), value.strip()


def checked(values: dict[str, Any]) -> TrainConfig:
    """The options as a TrainConfig; InputError naming the first one that is wrong."""
    _known(values, TrainConfig, "")
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"[:80]
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"training option {place}: {message}{got}." if place else f"{message}.") from error


def _known(values: dict[str, Any], section: type[BaseModel], place: str) -> None:
    for key, value in values.items():
        if key not in section.model_fields:
            raise InputError(unknown("training option", f"{place}{key}", [place + k for k in section.model_fields]))
        if isinstance(value, dict) and key in SECTIONS:
            _known(value, SECTIONS[key], f"{key}.")


SECTIONS: dict[str, type[BaseModel]] = {"smoothadv": SmoothAdv, "macer": Macer, "data_dependent": DataDependent}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both, the new one where they differ; tables are merged."""
    both = {key: _merged({}, value) if isinstance(value, dict) else value for key, value in old.items()}
    for key, value in new.items():
        before = both.get(key)
        both[key] = _merged(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
    return both
