"""Which model is it: a hash over everything in a module that its answers come from. It runs no model.

Two modules with one hash have the same weights, buffers, attributes, classes and code of their own. The behaviour
fingerprint of ``counting.fingerprint`` looks at answers instead, of bare callables too.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import sys
import textwrap
import types
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models.spec import ModelSpec
from ddsmoothing.modules import CODE, PLAIN, content, from_library, is_opaque, qualified, walk


def model_hash(model: Any) -> str | None:
    """SHA-256 over all that a module holds, by name; None for a bare callable.

    That is: parameters, buffers (also those that are not saved), plain tensors, arrays, numbers, strings and flags in
    attributes and in lists, tuples, dicts and plain objects there, hooks, what closures hold, the names of all classes
    and functions, and the source of those that are neither Python's nor of an installed package. Modes (``train``,
    ``eval``), devices and addresses are left out.

    Raises: ModelError where numbers cannot be read (quantised, lazy, meta), or where the module holds too much.
    """
    if not isinstance(model, nn.Module):
        return None
    lines = sorted(f"{name}\0{_token(name, value)}" for name, value in walk(model, (ModelSpec,)))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def model_identity(model: Any, model_id: str | None = None) -> str:
    """What ties a file to a model: its hash, and the id that its user gives it, which a bare callable needs.

    Raises: InputError where there is neither; ModelError as ``model_hash``.
    """
    digest = model_hash(model)
    if digest is None and not model_id:
        raise InputError("this model is a bare callable and has no hash; name it with --model-id (model_id=).")
    return identity_text(digest, model_id)


def identity_text(digest: str | None, model_id: str | None) -> str:
    """An identity in words, ``sha256:DIGEST``, ``id:NAME`` or both."""
    return " ".join(f"{kind}:{value}" for kind, value in (("sha256", digest), ("id", model_id)) if value)


def _token(name: str, value: Any) -> str:
    """One thing in text that is the same in every process."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        numbers = content(value)
        if numbers is None:
            raise _unreadable(name, value)
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(numbers).hexdigest()}"
    if isinstance(value, ModelSpec):
        return value.text()
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, np.generic):
        return f"{value.dtype} {value.tobytes().hex()}"
    if isinstance(value, enum.Enum):
        return f"{qualified(type(value))} {value.name}"
    if isinstance(value, PLAIN):
        return f"{qualified(type(value))} {value!r}"
    if isinstance(value, (*CODE, types.FunctionType)):
        return f"{qualified(value)} {_source(value)}"
    if is_opaque(value) and type(value).__name__ in ("ScriptObject", "PackedParams"):
        raise _unreadable(name, value)
    size = len(value) if isinstance(value, (dict, list, tuple, set, frozenset)) else ""
    kind: Any = type(value)
    return f"{qualified(kind)} {size} {_source(kind)}"


def _unreadable(name: str, value: Any) -> ModelError:
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        if is_lazy(value):
            kind = "lazy: it has no shape before the first pass"
        else:
            kind = "quantised" if value.is_quantized else "on the device meta" if value.is_meta else str(value.layout)
    return ModelError(
        f"the numbers of the model's {name.removeprefix('.')} cannot be read for its hash ({kind}); load it in another "
        "form, or wrap it in a function and name that with --model-id (model_id=)."
    )


@lru_cache(maxsize=256)
def _source(kind: Any) -> str:
    """The source of a class or function of the user's own, where it can be had."""
    module = str(getattr(kind, "__module__", None)).partition(".")[0]
    if isinstance(kind, types.ModuleType) or from_library(kind) or module in sys.stdlib_module_names - {"__main__"}:
        return ""
    try:
        file = inspect.getsourcefile(kind) or ""
        if "site-packages" in file or "dist-packages" in file:
            return ""
        return textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # typed in, or made by code
        return ""
