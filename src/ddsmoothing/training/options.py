"""Options of a training run, read from a preset, a TOML file and settings: later ones override.

It knows no torch and trains nothing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ddsmoothing.errors import InputError, unknown
from ddsmoothing.training.config import Catrs, Consistency, DataDependent, Macer, Selector, SmoothAdv, TrainConfig
from ddsmoothing.training.presets import PRESETS


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


SECTIONS: dict[str, type[BaseModel]] = {
    "smoothadv": SmoothAdv,
    "macer": Macer,
    "consistency": Consistency,
    "catrs": Catrs,
    "selector": Selector,
    "data_dependent": DataDependent,
}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both, the new one where they differ; tables are merged."""
    both = {key: _merged({}, value) if isinstance(value, dict) else value for key, value in old.items()}
    for key, value in new.items():
        before = both.get(key)
        both[key] = _merged(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
    return both
