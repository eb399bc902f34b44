"""The model and some inputs: is this a function, are its answers right, and do they survive the noise?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from scipy.stats import binom

from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.devices import untouched
from ddsmoothing.doctor.check import FAIL, NOTE, OK, WARN, Check
from ddsmoothing.errors import ModelError
from ddsmoothing.models import Normalize, spec_of

COPIES: Final = 8  # noisy copies of each input for the accuracy under noise
ENOUGH: Final = 32  # inputs, fewer say too little about accuracy to stop anything
_NORMS: Final = torch.nn.modules.batchnorm._BatchNorm


def model_checks(smoothed: SmoothedClassifier, x: torch.Tensor) -> Iterator[Check]:
    """Logits, modes, BatchNorm, randomness, other inputs in the batch, normalisation."""
    model, x = smoothed.model, x.to(smoothed.prepare(x[:1]).device)
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    answer = _answers(model)
    logits = answer(x)
    shape = (len(x), smoothed.num_classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != shape:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        yield Check(name="logits", status=FAIL, message=f"the model returns {got}, expected logits {shape}.")
        return
    if not bool(torch.isfinite(logits).all()):
        yield Check(name="logits", status=FAIL, message="NaN or infinite logits on clean inputs; check the weights.")
        return
    yield _logits(logits)
    if any(module.training for module in modules):
        yield Check(name="mode", status=NOTE, message="the model came in training mode; it is used in eval mode.")
    yield _batch_norm(modules)
    again = answer(x)
    if not torch.equal(again, logits):
        moved = int((again.argmax(1) != logits.argmax(1)).sum())
        text = f"two passes differ by {float((again - logits).abs().max()):.2g}, {moved} classes changed"
        yield Check(
            name="randomness",
            status=FAIL if moved else WARN,
            message=f"{text}; a certificate needs a function: remove dropout or noise that stays on in eval mode.",
        )
        return
    yield Check(name="randomness", status=OK, message="two passes agree.")
    if len(x) > 2:
        yield _batch_mates(answer, x, logits)
    yield _normalisation(model, modules)


def _answers(model: Any) -> Callable[[torch.Tensor], Any]:
    def answer(x: torch.Tensor) -> Any:
        with untouched(model), torch.inference_mode():
            try:
                return model(x)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ModelError(f"the model does not take inputs of shape {tuple(x.shape)}: {reason}") from error

    return answer


def _logits(logits: torch.Tensor) -> Check:
    sums = logits.double().sum(1)
    if bool((logits >= 0).all()) and bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all()):
        return Check(
            name="logits",
            status=WARN,
            message="these look like probabilities; certificates are not affected, but the ascent on sigma, attacks "
            "and training apply a softmax of their own. Return logits if you can.",
        )
    if bool((logits == logits[0]).all()):
        return Check(name="logits", status=WARN, message="the same logits for all inputs; are the weights loaded?")
    return Check(name="logits", status=OK, message=f"finite logits, {logits.shape[1]} classes.")


def _batch_norm(modules: list[torch.nn.Module]) -> Check:
    layers = [module for module in modules if isinstance(module, _NORMS)]
    without = [layer for layer in layers if layer.running_mean is None]
    if without:
        text = f"{len(without)} BatchNorm layers have no running statistics: answers depend on the rest of the batch."
        return Check(name="BatchNorm", status=FAIL, message=text)
    fresh = [layer for layer in layers if layer.num_batches_tracked is not None and not int(layer.num_batches_tracked)]
    if fresh:
        text = f"{len(fresh)} of {len(layers)} BatchNorm layers never saw a batch; were the statistics loaded?"
        return Check(name="BatchNorm", status=WARN, message=text)
    return Check(name="BatchNorm", status=OK, message=f"{len(layers)} layers, statistics fixed.")


def _batch_mates(answer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, logits: torch.Tensor) -> Check:
    """The first input among other inputs: the same class and nearly the same logits?"""
    other = answer(torch.cat([x[:1], x[1:].flip(0) * 0.5]))
    moved = float((other[0] - logits[0]).abs().max())
    if moved > 1e-3 * (1.0 + float(logits[0].abs().max())):
        text = (
            f"an input's logits move by {moved:.2g} with the other inputs of its batch; a certificate needs a function."
        )
        return Check(name="batch", status=FAIL, message=text)
    return Check(name="batch", status=OK, message="an input's answer does not depend on the rest of its batch.")


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
    classes, answer = smoothed.num_classes, _answers(smoothed.model)
    if int(y.max()) >= classes:
        yield Check(name="labels", status=FAIL, message=f"label {int(y.max())} but the model has {classes} classes.")
        return
    x = x.to(smoothed.prepare(x[:1]).device)
    answers = answer(x).argmax(1).cpu()
    clean, chance = float((answers == y).float().mean()), 1.0 / classes
    text = f"{100 * clean:.0f} % on {len(y)} clean inputs"
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
    logits = _answers(smoothed.model)(noisy.to(x.device)).cpu()
    if not bool(torch.isfinite(logits).all()):
        return Check(name="noise", status=FAIL, message=f"NaN or infinite logits under noise of sigma {sigma:g}.")
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
