"""What a training run is asked for: one frozen model of all options.

It knows no torch and trains nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from ddsmoothing.files import file_name
from ddsmoothing.noise import LARGEST_SIGMA

Sigma = Annotated[float, Field(gt=0.0, le=LARGEST_SIGMA, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Name = Annotated[str, PlainSerializer(file_name, when_used="json")]  # of a file, perhaps, whose name is no UTF-8


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


class Consistency(_Section):
    """Consistency: weight (lambda) of the copies' distance from their mean, eta of that mean's entropy."""

    weight: NotNegative = 10.0
    eta: NotNegative = 0.5


class Catrs(_Section):
    """CAT-RS.

    Attributes:
        weight: of the attacked part, in units of each sample's sigma.   epsilon, steps: of the attack on the noise; L2,
            pixels in [0, 1].   double_from: from this epoch on epsilon is twice as large.
        confidence: whose smoothed predictions: ``baseline`` (a file of them, or a teacher), or the network's ``own``.
        by_prediction: what is asked of a sample follows its smoothed prediction, not the share of its copies that are
            right.
        teacher_copies: noisy copies that a teacher sees for one prediction.   decay: what a sample's own votes of all
            earlier epochs weigh against those of the last.
    """

    weight: NotNegative = 2.0
    epsilon: NotNegative = 256 / 256
    steps: AtLeastOne = 4
    double_from: Count | None = None
    confidence: Literal["baseline", "own"] = "baseline"
    by_prediction: bool = False
    teacher_copies: AtLeastOne = 16
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.8


class Selector(_Section):
    """A selector among experts.

    Attributes:
        temperature: soft labels are the softmax of the experts' radii over it; in the units of the radius.
        weight: of the copies' distance from their mean.
    """

    temperature: Positive = 0.1
    weight: NotNegative = 1.0


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
            the labels.   normalize: as for ``build_model``.   condition: how the network is told sigma, see
            ``Conditional``; None: it is not.
        augmentation: as for ``data.augmentation``.   maximum: only the first so many training samples.
        objective: what is minimised.   sigma: of the noise, pixels in [0, 1]; a pair: log-uniform between the two,
            drawn for each sample and epoch.   copies: noisy copies of each input.
        epochs, batch: batch is that of all processes together.   batches: at most so many in an epoch, for a trial.
        optimizer: ``sgd`` or ``adamw``.   lr, momentum, nesterov, weight_decay: of it; AdamW's first decay is momentum.
        schedule: ``step`` (times step_factor every step_epochs epochs), ``cosine`` (to zero at the end, for each batch)
            or ``constant``; warmup: epochs of linear growth from zero.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast.   channels_last: memory format.
        recompute_batchnorm: take the statistics of batch normalisation anew from the last weights.
        validation: share of the training split that is held out; never the test split.   keep: model and sigma of the
            ``last`` epoch, or of the ``best`` one by accuracy on noisy held-out samples (of a denoiser: by PSNR).
        seed: of everything random.   init: a checkpoint or model file to start from, else weights are random;
            init_optimizer: with the state of its optimizer.   sigma_init: a sigma file to start from, of the training
            or the test split.
        predictions: a file of smoothed predictions of a baseline on the training split; for a selector, of the radii of
            experts, which it then tells apart in place of classes.   teacher: a baseline, as for
            ``load_model``, whose smoothed predictions are drawn when they are needed, at each sample's own sigma.
        denoiser: as for ``load_denoiser``, put before the model, which is then the classifier that init is of; resize:
            the sides of the images that it wants.
        freeze: the part of a model with parts ``denoiser`` and ``classifier`` that is left as it is.
            soft_targets: the targets are what the frozen classifier says of the clean input, not the labels.
        smoothadv, macer, consistency, catrs, selector: of those objectives.
        data_dependent: None trains with sigma as it is.
    """

    data: Name
    model: Name
    num_classes: Annotated[int, Field(ge=2)] | None = None
    normalize: str = "auto"
    condition: Literal["channel", "film"] | None = None
    augmentation: str = "none"
    maximum: AtLeastOne | None = None
    objective: Literal["gaussian", "smoothadv", "macer", "consistency", "catrs", "selector", "denoiser"] = "gaussian"
    sigma: Sigma | tuple[Sigma, Sigma] = 0.25
    copies: AtLeastOne = 1
    epochs: AtLeastOne = 90
    batch: AtLeastOne = 256
    batches: AtLeastOne | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
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
    recompute_batchnorm: bool = False
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    keep: Literal["last", "best"] = "last"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    init: Name | None = None
    init_optimizer: bool = False
    sigma_init: Name | None = None
    predictions: Name | None = None
    teacher: Name | None = None
    denoiser: Name | None = None
    resize: Annotated[int, Field(ge=1, le=1024)] | None = None
    freeze: Literal["denoiser", "classifier"] | None = None
    soft_targets: bool = False
    smoothadv: SmoothAdv = SmoothAdv()
    macer: Macer = Macer()
    consistency: Consistency = Consistency()
    catrs: Catrs = Catrs()
    selector: Selector = Selector()
    data_dependent: DataDependent | None = None

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        self._check_sigma()
        self._check_loop()
        self._check_sources()
        return self

    def _check_sigma(self) -> None:
        moving = self.data_dependent
        if isinstance(self.sigma, tuple):
            if not self.sigma[0] < self.sigma[1]:
                raise ValueError(f"sigma is {self.sigma}, expected one number or (low, high) with low < high")
            if moving is not None:
                raise ValueError("sigma is a range, expected one number, where data-dependent sigmas start")
        elif self.condition is not None and moving is None:
            raise ValueError(
                f"sigma is {self.sigma:g} for a network that is told sigma, expected a range, such as 0.12,1.0, or "
                "data-dependent sigmas"
            )
        if moving is not None and moving.switch_epoch >= self.epochs:
            raise ValueError(
                f"sigma moves from epoch {moving.switch_epoch} on, but there are {self.epochs} epochs, counted from 0; "
                "expected an earlier switch_epoch"
            )
        low, high = self.sigma_bounds
        test = None if moving is None else moving.sigma0_test
        for start in (self.sigma_start, self.sigma_start if test is None else test):
            if not low <= start <= high or low == high:
                raise ValueError(f"sigma {start:g} lies outside its bounds [{low:g}, {high:g}]")

    def _check_loop(self) -> None:
        if self.nesterov and (self.momentum == 0.0 or self.optimizer != "sgd"):
            raise ValueError("nesterov needs a momentum above 0, and the optimizer sgd")
        if self.keep == "best" and self.validation == 0.0:
            raise ValueError("keep 'best' needs held-out samples, expected a validation share above 0")
        if self.keep == "best" and self.recompute_batchnorm:
            raise ValueError("recompute_batchnorm is for the last weights, expected keep 'last'")
        if self.init_optimizer and self.init is None:
            raise ValueError("init_optimizer needs init, the checkpoint whose optimizer is continued")

    def _check_sources(self) -> None:
        given = [name for name in ("predictions", "teacher") if getattr(self, name) is not None]
        if self.objective == "catrs":
            expected = 1 if self.catrs.confidence == "baseline" else 0
            if len(given) != expected:
                raise ValueError(
                    f"catrs with confidence {self.catrs.confidence!r} got {' and '.join(given) or 'no predictions'}; "
                    "expected one of predictions (a file) and teacher (a model), or confidence 'own'"
                )
        elif self.objective == "selector":
            if given != ["predictions"] or self.data_dependent is not None:
                raise ValueError(
                    "a selector trains on predictions (a file of the radii of experts, made with --experts), without a "
                    "teacher and without data-dependent sigmas"
                )
        elif given:
            raise ValueError(f"{given[0]} is for the objectives catrs and selector, got {self.objective}")
        if self.objective == "denoiser" and (self.data_dependent or self.condition or self.freeze):
            raise ValueError(
                "the objective denoiser trains a network that takes sigma by itself, with a sigma or a range"
            )
        if self.denoiser is not None and (self.freeze is None or self.init_optimizer):
            raise ValueError(
                "a denoiser before the model needs freeze, the part to leave as it is, and no init_optimizer"
            )
        if self.resize is not None and self.denoiser is None:
            raise ValueError("resize is of denoised images, expected a denoiser")
        if self.soft_targets and (self.freeze != "classifier" or self.objective != "gaussian"):
            raise ValueError("soft_targets are those of a frozen classifier, expected freeze 'classifier' and gaussian")

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
