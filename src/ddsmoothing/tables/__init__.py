"""Runs as tables: what they are called, which may be compared, and the forms papers want. It draws nothing."""

from ddsmoothing.tables.comparable import (
    Paired,
    alike,
    fixed_group,
    labelled,
    paired,
    same_inputs,
    same_run,
)
from ddsmoothing.tables.detail import class_records, class_tables, pair_records, pair_summary, pair_tables, row_records
from ddsmoothing.tables.forms import csv_text, json_text, latex, markdown, write_parquet
from ddsmoothing.tables.labels import called, heading, labels_of, provenance, side_by_side, subset_text
from ddsmoothing.tables.numbers import ceil_text, interval_text, percent, percent_up, share_text, significant
from ddsmoothing.tables.summary import Shown, accuracy_tables, noise_tables, summary, summary_records
from ddsmoothing.tables.table import Table

__all__ = [
    "Paired",
    "Shown",
    "Table",
    "accuracy_tables",
    "alike",
    "called",
    "ceil_text",
    "class_records",
    "class_tables",
    "csv_text",
    "fixed_group",
    "heading",
    "interval_text",
    "json_text",
    "labelled",
    "labels_of",
    "latex",
    "markdown",
    "noise_tables",
    "pair_records",
    "pair_summary",
    "pair_tables",
    "paired",
    "percent",
    "percent_up",
    "provenance",
    "row_records",
    "same_inputs",
    "same_run",
    "share_text",
    "side_by_side",
    "significant",
    "subset_text",
    "summary",
    "summary_records",
    "write_parquet",
]
