"""Preflight: what would waste hours of certification or training, found in seconds.

It proves nothing and claims nothing; it looks at a model, some inputs, the wanted numbers and the machine. It reads no
files but the names of installed packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.data import Dataset
from ddsmoothing.doctor.check import FAIL, NOTE, OK, WARN, Check
from ddsmoothing.doctor.machine import machine_checks, number_checks, speed_check
from ddsmoothing.doctor.model import accuracy_checks, input_checks, model_checks
from ddsmoothing.errors import ModelError

__all__ = ["FAIL", "NOTE", "OK", "WARN", "Check", "examine", "quick_check", "stop_on_failure"]

INPUTS: Final = 64
MANY_CALLS: Final = 200


def quick_check(
    smoothed: SmoothedClassifier,
    data: Dataset,
    ids: Sequence[int] | None = None,
    sigma: float | None = None,
    *,
    thorough: bool = False,
) -> list[Check]:
    """The cheap part, about a thousand forward passes: model and data alone, at one sigma.

    Args:
        ids: the inputs to come; 64 of them are used.   sigma: for the accuracy under noise; None leaves that out.
        thorough: look for dependence on the batch in batches as large as the run's, and after many calls.
    """
    everything = list(range(len(data)) if ids is None else ids)
    chosen = everything[:: max(1, len(everything) // INPUTS)][:INPUTS]
    smoothed = smoothed.with_any_range()  # what is wrong with the range is said by a check
    x, y = data[chosen]
    labels = None if data.y is None else y
    size = {"rows": smoothed.block_rows(x[0].numel()), "calls": MANY_CALLS} if thorough else {}
    checks = [*model_checks(smoothed, x, sigma, **size)]
    if any(check.status == FAIL for check in checks):
        return checks
    checks += input_checks(smoothed, x)
    if labels is not None:
        checks += accuracy_checks(smoothed, x, labels, sigma)
    return checks


def stop_on_failure(checks: Sequence[Check], override: str = "--no-preflight") -> None:
    """Raise ModelError naming the first failed check and the option that overrides it."""
    for check in checks:
        if check.status == FAIL:
            raise ModelError(f"preflight, {check.name}: {check.message} To go on all the same, add {override}.")


def examine(
    smoothed: SmoothedClassifier,
    data: Dataset,
    *,
    sigma: float | None = None,
    n: int = 100_000,
    alpha: float = 0.001,
    bound: str = "one-class",
    out: Path | None = None,
) -> list[Check]:
    """Everything: the quick check, the numbers asked for, speed, and the machine."""
    checks = quick_check(smoothed, data, None, sigma, thorough=True)
    checks += number_checks(smoothed.certificate, n, alpha, bound, sigma)
    if not any(check.status == FAIL for check in checks):
        checks.append(speed_check(smoothed, data[:INPUTS][0]))
    return [*checks, *machine_checks(out)]
