"""Templates filled with what runs say, every value escaped. It knows no runs."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from ddsmoothing.errors import printable

_FOLDER: Final = "templates"
_MARKUP: Final = re.compile(r"([\\`*_\[\]<>|#&~$])")


def escape_markdown(value: object) -> str:
    """Text that Markdown, tables included, shows as it stands, in one line."""
    return _MARKUP.sub(r"\\\1", printable(str(value)))


@lru_cache(maxsize=2)
def _environment(html: bool) -> Environment:
    """HTML escapes every value by itself; Markdown does the same through ``finalize``."""
    environment = Environment(
        loader=PackageLoader("ddsmoothing.report", _FOLDER),
        autoescape=html,  # noqa: S701
        finalize=None if html else escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def render_markdown(name: str, **values: Any) -> str:
    """A Markdown template, every value escaped."""
    return _environment(False).get_template(name).render(values)


def render_page(name: str, **values: Any) -> str:
    """An HTML template, every value escaped; ``style`` and ``script`` and their hashes for the CSP are added."""
    parts = {kind: _text(f"{kind}.{suffix}") for kind, suffix in (("style", "css"), ("script", "js"))}
    hashes = {f"{kind}_hash": _csp_hash(text) for kind, text in parts.items()}
    return _environment(True).get_template(name).render(values | parts | hashes)


def _text(name: str) -> str:
    return (files("ddsmoothing.report") / _FOLDER / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
