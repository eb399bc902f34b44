"""The model and some inputs: is this a function, are its answers right, and do they survive the noise?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from scipy.stats import binom

from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.function import CALLS, ROWS, changing_attributes, faults_of
from ddsmoothing.doctor.check import FAIL, NOTE, OK, WARN, Check
from ddsmoothing.errors import ModelError
from ddsmoothing.models import Normalize, spec_of

COPIES: Final = 8  # noisy copies of each input for the accuracy under noise
SIGMA: Final = 0.25  # where none is given
ADVICE: Final = {
    "randomness": "remove dropout or noise that stays on in eval mode",
    "batch": "nothing may be taken over the rows of a batch, nor depend on their number or order",
    "calls": "nothing may be carried from one call to the next",
    "threads": "nothing may be kept outside the module and its attributes",
}
ENOUGH: Final = 32  # inputs, fewer say too little about accuracy to stop anything
_NORMS: Final = torch.nn.modules.batchnorm._BatchNorm


def model_checks(
    smoothed: SmoothedClassifier, x: torch.Tensor, sigma: float | None = None, rows: int = ROWS, calls: int = CALLS
) -> Iterator[Check]:
    """Logits, modes, BatchNorm, normalisation, and whether the model is a function of one row.

    Args:
        x: ``(B, ...)`` clean inputs.   sigma: of the noise in the last of these, 0.25 if not known.
        rows, calls: of that; see ``faults_of``.
    """
    model, x, sigma = smoothed.model, x.to(smoothed.prepare(x[:1]).device), sigma or SIGMA
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    try:
        logits = smoothed.engine.logits(x, sigma, smoothed.num_classes)
    except ModelError as error:
        yield Check(name="logits", status=FAIL, message=str(error))
        return
    yield _logits(logits)
    if any(module.training for module in modules):
        yield Check(name="mode", status=NOTE, message="the model came in training mode; it is used in eval mode.")
    yield _batch_norm(modules)
    yield from _function(smoothed, x, sigma, rows, calls)
    yield _normalisation(model, modules)


def _function(smoothed: SmoothedClassifier, x: torch.Tensor, sigma: float, rows: int, calls: int) -> Iterator[Check]:
    """The signs that the model is no function, and what of its own it changes in a pass."""
    engine, classes = smoothed.eager_engine(), smoothed.num_classes
    try:
        faults = list(faults_of(engine, x, sigma, num_classes=classes, rows=rows, calls=calls))
        changing = changing_attributes(engine, x[:1], sigma)
    except ModelError as error:
        yield Check(name="function", status=FAIL, message=f"under noise of sigma {sigma:g}, {error}")
        return
    for fault in faults:
        text = f"{fault.text}; a certificate needs a function of one input: {ADVICE[fault.name]}."
        yield Check(name=fault.name, status=FAIL, message=text)
    if not faults:
        text = "the same logits asked again, in other batches, beside other rows, after other calls and in threads."
        yield Check(name="function", status=OK, message=text)
    if changing:
        text = f"a pass changes {', '.join(changing[:3])}; every call starts from what the model came with."
        yield Check(name="state", status=NOTE, message=text)
    if (why := smoothed.engine.alone) is not None:
        yield Check(name="threads", status=NOTE, message=f"the model is called by one thread at a time: {why}.")


def _logits(logits: torch.Tensor) -> Check:
    sums = logits.double().sum(1)
    if bool((logits >= 0).all()) and bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all()):
        return Check(
            name="logits",
            status=WARN,
            message="these look like probabilities; certificates are not affected, but the ascent on sigma, attacks "
            "and training apply a softmax of their own. Return logits if you can.",
        )
    if len(logits) > 1 and bool((logits == logits[0]).all()):
        return Check(name="logits", status=WARN, message="the same logits for all inputs; are the weights loaded?")
    return Check(name="logits", status=OK, message=f"finite logits, {logits.shape[1]} classes.")


def _batch_norm(modules: list[torch.nn.Module]) -> Check:
    layers = [module for module in modules if isinstance(module, _NORMS)]
    without = [layer for layer in layers if layer.running_mean is None]
    if without:
        text = f"{len(without)} BatchNorm layers have no running statistics: answers depend on the rest of the batch."
        return Check(name="BatchNorm", status=FAIL, message=text)
    fresh = [layer for layer in layers if _is(layer.running_mean, 0.0) and _is(layer.running_var, 1.0)]
    if fresh:
        text = f"{len(fresh)} of {len(layers)} BatchNorm layers have the statistics of a new one; were theirs loaded?"
        return Check(name="BatchNorm", status=WARN, message=text)
    return Check(name="BatchNorm", status=OK, message=f"{len(layers)} layers, statistics fixed.")


def _is(values: torch.Tensor | None, value: float) -> bool:
    return values is not None and bool(torch.eq(values, value).all())


def _normalisation(model: Any, modules: list[torch.nn.Module]) -> Check:
    spec = spec_of(model)
    if spec is not None and spec.mean:
        return Check(name="normalisation", status=OK, message=f"inside the model: mean {spec.mean}, std {spec.std}.")
    if any(isinstance(m, Normalize) or "normaliz" in type(m).__name__.lower() for m in modules):
        return Check(name="normalisation", status=OK, message="a normalising layer is inside the model.")
    text = "no normalising layer was recognised; inputs are pixels in [0, 1], so it belongs inside the model."
    return Check(name="normalisation", status=NOTE, message=text)


def input_checks(smoothed: SmoothedClassifier, x: torch.Tensor) -> Iterator[Check]:
    """Range and grid of the inputs ``(B, ...)``."""
    low, high = float(x.min()), float(x.max())
    inside = low >= 0.0 and high <= 1.0
    text = f"[{low:.3g}, {high:.3g}]"
    if inside and high <= 2.0 / 255:
        yield Check(name="range", status=WARN, message=f"{text}: very dark; were the numbers divided by 255 twice?")
    elif inside:
        yield Check(name="range", status=OK, message=text)
    else:
        yield Check(name="range", status=WARN, message=f"{text}, expected [0, 1]; sigma and radii are in these units.")
    share = float(smoothed.prepare(x).on_grid.mean())
    if share == 1.0:
        yield Check(name="grid", status=OK, message=f"all inputs lie on the grid X/{smoothed.levels}: exact noise.")
    else:
        text = f"{100 * (1 - share):.0f} % of the inputs lie off the grid X/{smoothed.levels}: float noise."
        yield Check(name="grid", status=NOTE, message=text)


def accuracy_checks(
    smoothed: SmoothedClassifier, x: torch.Tensor, y: torch.Tensor, sigma: float | None
) -> Iterator[Check]:
    """Clean accuracy, order of the classes, and accuracy under noise; labels ``(B,)``."""
    classes = smoothed.num_classes
    if int(y.max()) >= classes:
        yield Check(name="labels", status=FAIL, message=f"label {int(y.max())} but the model has {classes} classes.")
        return
    x = x.to(smoothed.prepare(x[:1]).device)
    answers = smoothed.engine.logits(x, sigma or SIGMA, classes).argmax(1).cpu()
    clean, chance = float((answers == y).float().mean()), 1.0 / classes
    text = f"{100 * clean:.0f} % on {len(y)} clean inputs"
    if _at_chance(1.0, len(y), chance):
        yield Check(name="accuracy", status=NOTE, message=f"{text}: too few to tell it from chance.")
        return
    if _at_chance(clean, len(y), chance):
        best = _renamed(answers, y, classes)
        order = f" With the classes in another order it would be {100 * best:.0f} %: check their order."
        yield Check(
            name="accuracy",
            status=FAIL if len(y) >= ENOUGH else WARN,
            message=f"{text}, chance is {100 * chance:.0f} %; check weights, normalisation (inside the model, once), "
            f"channel order and labels.{order if best > max(0.5, clean + 0.3) and len(y) >= 2 * classes else ''}",
        )
        return
    yield Check(name="accuracy", status=OK, message=f"{text}.")
    if sigma is not None:
        yield _under_noise(smoothed, x, y, sigma, clean)


def _at_chance(share: float, size: int, chance: float) -> bool:
    """Is a share of right answers among so many inputs no better than guessing would explain (1 %)?"""
    return float(binom.sf(round(share * size) - 1, size, chance)) > 0.01


def _renamed(answers: torch.Tensor, y: torch.Tensor, classes: int) -> float:
    """Accuracy if every answered class were called by the label most often seen with it."""
    table = torch.zeros(classes, classes)
    table.index_put_((answers, y), torch.ones(len(y)), accumulate=True)
    return float(table.amax(1).sum() / len(y))


def _under_noise(smoothed: SmoothedClassifier, x: torch.Tensor, y: torch.Tensor, sigma: float, clean: float) -> Check:
    """Share of correct answers to noisy copies; the noise is of no certificate's stream."""
    generator = torch.Generator().manual_seed(0)
    copies = x.cpu().repeat_interleave(COPIES, 0)
    theta = torch.tensor(smoothed.certificate.noise.scale(sigma), dtype=copies.dtype)
    noisy = copies + smoothed.certificate.sample_noise(copies, theta, generator)
    try:
        logits = smoothed.engine.logits(noisy.to(x.device), sigma, smoothed.num_classes).cpu()
    except ModelError as error:
        return Check(name="noise", status=FAIL, message=f"under noise of sigma {sigma:g}, {error}")
    right, chance = float((logits.argmax(1) == y.repeat_interleave(COPIES)).float().mean()), 1.0 / smoothed.num_classes
    text = f"{100 * right:.0f} % of noisy copies at sigma {sigma:g} are right ({100 * clean:.0f} % without noise)"
    if _at_chance(right, len(y), chance):
        return Check(
            name="noise",
            status=FAIL if len(y) >= ENOUGH else WARN,
            message=f"{text}: at chance, so nearly all inputs would abstain. Use a smaller sigma or a model trained "
            "with noise.",
        )
    return Check(name="noise", status=OK if right > 0.5 else WARN, message=f"{text}.")
