"""The machine and the numbers asked for: devices, speed, packages, the folder for results, n against alpha."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from ddsmoothing.bounds import alpha_of_top, check_alpha, check_bound, check_feasible, floor_text, largest_lower_bound
from ddsmoothing.certificate import Certificate
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.doctor.check import FAIL, NOTE, OK, WARN, Check
from ddsmoothing.doctor.model import SIGMA
from ddsmoothing.errors import DdsmoothingError, ModelError

EXTRAS: Final = ("torchvision", "timm", "ray", "pyarrow")


def number_checks(certificate: Certificate, n: int, alpha: float, bound: str, sigma: float | None) -> Iterator[Check]:
    """n against alpha, and the largest radius they can certify."""
    try:
        check_feasible(n, check_alpha(alpha), check_bound(bound))
    except DdsmoothingError as error:
        yield Check(name="samples", status=FAIL, message=str(error))
        return
    gap = certificate.compute_gap(largest_lower_bound(n, alpha_of_top(alpha, bound)))
    scale = certificate.noise.scale(1.0)
    text = f"n={n} at alpha={alpha:g} certifies at most {floor_text(gap * scale, 3)} sigma"
    if sigma is not None:
        text += f", {floor_text(gap * scale * sigma, 3)} at sigma {sigma:g}"
    yield Check(name="samples", status=OK, message=f"{text}.")


def speed_check(smoothed: SmoothedClassifier, x: torch.Tensor) -> Check:
    """Forward passes a second, in the precision asked for and in bf16 autocast."""
    x = x.to(smoothed.prepare(x[:1]).device)
    rates = {}
    for name, on in (("fp32", False), ("bf16", True)):
        try:
            with smoothed.engine.open() as (caller,), torch.autocast(x.device.type, torch.bfloat16, on):
                caller.logits(x.clone(), SIGMA)
                start, done = time.perf_counter(), 0
                while done < 20 and time.perf_counter() - start < 0.3:
                    float(caller.logits(x.clone(), SIGMA).flatten()[0])  # reading a number waits for the device
                    done += 1
                rates[name] = done * len(x) / (time.perf_counter() - start)
        except ModelError:
            rates[name] = 0.0
    faster = "; --precision bf16 may be worth a try" if rates["bf16"] > 1.2 * rates["fp32"] else ""
    text = f"{rates['fp32']:,.0f} forwards/s, in bf16 {rates['bf16']:,.0f}, on {x.device}{faster}."
    return Check(name="speed", status=NOTE, message=text)


def machine_checks(out: Path | None = None) -> Iterator[Check]:
    """Devices, optional packages, the folder for results, and an older package of the same import name."""
    devices = [f"cpu, {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Check(name="devices", status=NOTE, message="; ".join(devices) + ".")
    there = [f"{name} {'yes' if find_spec(name) else 'no'}" for name in EXTRAS]
    yield Check(name="extras", status=NOTE, message=", ".join(there) + ".")
    if out is not None:
        yield _writable(out)
    yield _shadowing()


def _writable(out: Path) -> Check:
    folder = next((parent for parent in (out, *out.absolute().parents) if parent.exists()), Path("/"))
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Check(name="folder", status=OK, message=f"{folder} is writable.")
    return Check(name="folder", status=FAIL, message=f"{folder} is no folder that can be written to.")


def _shadowing() -> Check:
    try:
        version = distribution("ddsmoothing-python").version
    except PackageNotFoundError:
        return Check(
            name="package", status=OK, message="ddsmoothing-python, which has the same import name, is absent."
        )
    return Check(
        name="package",
        status=WARN,
        message=f"ddsmoothing-python {version} is installed and has the same import name; uninstall it, then reinstall "
        "ddsmoothing, since the two overwrite each other's files.",
    )
