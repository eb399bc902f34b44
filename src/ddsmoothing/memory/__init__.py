"""A certified memory: regions that later queries are answered from, so that a data-dependent sigma keeps its word."""

from ddsmoothing.memory.classifier import CertifiedMemory
from ddsmoothing.memory.records import Binding
from ddsmoothing.memory.regions import Answer, Answers, Found
from ddsmoothing.memory.risk import Risk
from ddsmoothing.memory.store import Store

__all__ = ["Answer", "Answers", "Binding", "CertifiedMemory", "Found", "Risk", "Store"]
