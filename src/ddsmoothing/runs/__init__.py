"""Run folders: what was asked (header.json) and what was found (results.jsonl, one self-contained row an input)."""

from ddsmoothing.runs.export import FORMATS, export_run
from ddsmoothing.runs.imports import Imported, Results, import_file, load_results
from ddsmoothing.runs.rejudge import rejudged
from ddsmoothing.runs.schema import Header, OffsetsNote, ResultRow
from ddsmoothing.runs.store import Run, load_run

__all__ = [
    "FORMATS",
    "Header",
    "Imported",
    "OffsetsNote",
    "ResultRow",
    "Results",
    "Run",
    "export_run",
    "import_file",
    "load_results",
    "load_run",
    "rejudged",
]
