"""A certified memory: regions that later queries are answered from, so that a data-dependent sigma keeps its word.

Names are imported when first used: rules, records and files need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddsmoothing.memory.classifier import CertifiedMemory
    from ddsmoothing.memory.records import Binding
    from ddsmoothing.memory.regions import Answer, Answers, Found
    from ddsmoothing.memory.risk import Risk
    from ddsmoothing.memory.store import Store

_ROOMS = {
    "Answer": "regions",
    "Answers": "regions",
    "Binding": "records",
    "CertifiedMemory": "classifier",
    "Found": "regions",
    "Risk": "risk",
    "Store": "store",
}
__all__ = ["Answer", "Answers", "Binding", "CertifiedMemory", "Found", "Risk", "Store"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'ddsmoothing.memory' has no attribute {name!r}")
    return getattr(import_module(f"ddsmoothing.memory.{_ROOMS[name]}"), name)
