"""Which model is it: a hash over everything in a module that its answers come from. It runs no model, reads no weights.

Two models with one hash have the same weights, buffers, attributes, classes and code of their own. What a hash cannot
see is in ``docs/guarantees.md``; the behaviour fingerprint of ``counting.fingerprint`` looks at answers instead.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
from typing import Any

import numpy as np
import torch
from torch import nn

from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models.spec import ModelSpec
from ddsmoothing.modules import CODE, PLAIN, content, from_library, is_inner, is_opaque, qualified, walk


def model_hash(model: Any) -> str | None:
    """SHA-256 over all that a module holds, by name; None for a bare callable.

    That is: parameters, buffers (also those that are not saved), plain tensors, arrays, numbers, strings and flags in
    attributes and in lists, tuples, dicts and plain objects there, hooks, what closures hold, the names of all classes
    and functions, and the source of those that are neither Python's nor of an installed package. Modes (``train``,
    ``eval``), devices, addresses and private attributes of torch's own layers are left out.

    Raises: ModelError where numbers cannot be read (quantised, lazy, meta), or where the module holds too much.
    """
    if not isinstance(model, nn.Module):
        return None
    lines = sorted(
        (f"{name}\0{_token(name, value)}" for name, value in walk(model) if not _left_out(name, value)),
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def model_identity(model: Any, model_id: str | None = None) -> str:
    """What ties a file to a model: its hash, or for a bare callable the id that its user gives it.

    Raises: InputError where there is neither; ModelError as ``model_hash``.
    """
    digest = model_hash(model)
    if digest is None and not model_id:
        raise InputError("this model is a bare callable and has no hash; name it with --model-id (model_id=).")
    return f"sha256:{digest}" if digest is not None else f"id:{model_id}"
