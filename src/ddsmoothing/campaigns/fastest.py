"""The form of a model that is fastest here, its precision and layout, by a few passes of each. It writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.speed import samples_a_second
from ddsmoothing.errors import DdsmoothingError

FORMS: Final = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))  # precision, channels_last
FORM_SECONDS: Final = 3.0  # at most, but for a first pass of one row
GAIN: Final = 1.05  # what a form has to bring over a plainer one

Form = tuple[str, bool]


def fastest_form(smoothed: SmoothedClassifier, x: torch.Tensor) -> SmoothedClassifier:
    """The same model in the precision (fp32 or bf16) and layout with the most samples a second on this machine.

    That form is another base classifier: what it answers, and so every certificate and figure, is its own, and who
    deploys the smoothed classifier has to run it in that form. So choose before anything is certified, and go on with
    ``precision`` and ``channels_last`` of what was chosen, which a run's header keeps: another time or machine may
    choose otherwise.

    Args:
        smoothed: A classifier in any form.
        x: ``(B, ...)`` inputs, of which the first is used.
    Returns:
        A classifier, looked at anew before its first answer; its workers are those of ``smoothed``. A bare callable
        has one form only.
    Raises:
        ModelError: The model cannot be asked as it is.
    """
    if not isinstance(smoothed.model, torch.nn.Module):
        return smoothed
    model, batch, noise = smoothed.model, smoothed.prepare(x[:1]), smoothed.certificate.noise

    def rate(form: Form) -> float:
        engine = Engine(model, precision=form[0], channels_last=form[1], compiled=smoothed.compiled)
        rows = smoothed.block_rows(batch.d)
        growing = not smoothed.compiled
        return samples_a_second(engine, noise, smoothed.num_classes, batch, rows, FORM_SECONDS, growing=growing)

    precision, channels_last = chosen_form(rate, images=len(batch.shape) == 3)
    return SmoothedClassifier(
        model,
        smoothed.certificate,
        num_classes=smoothed.num_classes,
        vote=smoothed.vote,
        offsets=smoothed.offsets,
        block_size=smoothed.block_size,
        precision=precision,
        channels_last=channels_last,
        compiled=smoothed.compiled,
        snap=smoothed.snap,
        levels=smoothed.levels,
        any_range=smoothed.any_range,
    ).with_workers(smoothed.workers)


def chosen_form(rate: Callable[[Form], float], *, images: bool = True) -> Form:
    """The form with the highest rate; of those that differ by less than GAIN the plainest.

    Args:
        rate: samples a second; may raise for a form that the model does not take, other than the plainest.
        images: inputs have channels, height and width, so that a layout means something.
    """
    best, most = FORMS[0], rate(FORMS[0])
    for form in FORMS[1:]:
        if form[1] and not images:
            continue
        try:
            found = rate(form)
        except DdsmoothingError:  # it cannot be cast, or gives NaN there
            continue
        if found > GAIN * most:
            best, most = form, found
    return best
