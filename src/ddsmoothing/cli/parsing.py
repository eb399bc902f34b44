"""What options say, as numbers, sigmas and shares of a run: the same for every command. It loads no models."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ddsmoothing.cli.loading import PLAUSIBLE_SIGMA
from ddsmoothing.errors import InputError, SigmaError

if TYPE_CHECKING:
    from ddsmoothing.classifier import SmoothedClassifier
    from ddsmoothing.data import Dataset
    from ddsmoothing.sigma import SigmaPolicy


def wanted_radii(options: dict[str, Any]) -> list[float] | None:
    """The radii of --radius or --radii."""
    if options["radius"] is not None and options["radii"] is not None:
        raise InputError("expected one of --radius and --radii.")
    if options["radius"] is not None:
        return [options["radius"]]
    return None if options["radii"] is None else numbers(options["radii"], "--radii")


def shard_of(text: str | None) -> tuple[int, int] | None:
    """``2/8`` as a pair."""
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InputError(f"--shard is {text!r}, expected i/n such as 2/8.")
    return int(parts[0]), int(parts[1])


def seconds_of(text: str | None) -> float | None:
    """``90s``, ``30m``, ``8h`` or plain seconds."""
    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise InputError(f"--budget is {text!r}, expected a time such as 90s, 30m or 8h.")
    return value


def check_plausible(sigma: float, allowed: bool) -> float:
    """Refuse a sigma that was meant for pixels in 0..255."""
    if sigma > PLAUSIBLE_SIGMA and not allowed:
        raise SigmaError(
            f"sigma {sigma:g} is very large for inputs in [0, 1]; if it was meant for 0..255, use {sigma / 255:.4g}. "
            "If not, add --allow-large-sigma, or say by --units what they are."
        )
    return sigma


def fixed_sigma(options: dict[str, Any]) -> float:
    """The one sigma that --sigma or --lambda gives."""
    from ddsmoothing.noise import Uniform

    sigma, lambda_ = options["sigma"], options["lambda_"]
    if lambda_ is not None and options["norm"] != "l1":
        raise InputError("--lambda is the half-width of uniform noise, expected --norm l1 with it.")
    if (sigma is None) == (lambda_ is None):
        raise InputError("expected exactly one of --sigma S and --lambda L (l1 only).")
    return check_plausible(sigma if lambda_ is None else Uniform().sigma(lambda_), options["allow_large_sigma"])


def sigma_policy(options: dict[str, Any], smoothed: SmoothedClassifier, data: Dataset) -> SigmaPolicy:
    """Where the options say that sigma comes from."""
    from ddsmoothing.campaigns.subset import subset_ids
    from ddsmoothing.models import model_identity
    from ddsmoothing.sigma import SigmaPolicy
    from ddsmoothing.sigma.files import load_sigmas

    fixed = options["sigma"] is not None or options["lambda_"] is not None
    if fixed + options["data_dependent"] + (options["sigmas"] is not None) != 1:
        raise InputError(
            "expected exactly one of --sigma S (or --lambda L), --data-dependent, --sigmas FILE, --pair-sigmas FILE "
            "and --rule."
        )
    searched = [key for key in ("sigma0", "sigma_min", "sigma_max", "sigma_grid") if options[key] is not None]
    if searched and not options["data_dependent"]:
        raise InputError(f"--{searched[0].replace('_', '-')} belongs to --data-dependent; leave it out.")
    if fixed:
        return SigmaPolicy.fixed(fixed_sigma(options))
    if options["sigmas"] is not None:
        file = load_sigmas(options["sigmas"])
        file.check(data.fingerprint(), model_identity(smoothed.model, options["model_id"]), options["norm"])
        ids = subset_ids(data, options["skip"], options["maximum"], shard_of(options["shard"]))
        return SigmaPolicy.given(file.of(ids), hashlib.sha256(options["sigmas"].read_bytes()).hexdigest())
    grid = parse_grid(options["sigma_grid"], options["allow_large_sigma"])
    return SigmaPolicy.search(start_sigma(options, smoothed), options["sigma_min"], options["sigma_max"], grid)


def numbers(text: str, option: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}, expected numbers such as 0.25,0.5,1.") from None


def parse_grid(text: str | None, allowed: bool) -> list[float] | None:
    """The sigmas of --sigma-grid."""
    return None if text is None else [check_plausible(value, allowed) for value in numbers(text, "--sigma-grid")]


def start_sigma(options: dict[str, Any], smoothed: SmoothedClassifier) -> float:
    """sigma0 as given, else what the model says it was trained with."""
    from ddsmoothing.models import spec_of

    sigma0 = options["sigma0"]
    if sigma0 is None:
        spec = spec_of(smoothed.model)
        sigma0 = None if spec is None else spec.sigma0
        if sigma0 is None:
            raise InputError("this model does not say what noise it was trained with; give --sigma0.")
    for value in (sigma0, options["sigma_min"], options["sigma_max"]):
        if value is not None:
            check_plausible(value, options["allow_large_sigma"])
    return float(sigma0)
