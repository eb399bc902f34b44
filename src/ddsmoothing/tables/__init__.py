"""Runs as tables: what they are called, which may be compared, and the forms papers want. It draws nothing."""

from ddsmoothing.tables.detail import class_records, class_tables, pair_records, pair_summary, pair_tables, row_records
from ddsmoothing.tables.forms import csv_text, json_text, latex, markdown, write_parquet
from ddsmoothing.tables.labels import (
    Paired,
    ceil_text,
    fixed_group,
    labelled,
    labels_of,
    paired,
    percent,
    provenance,
    same_inputs,
    subset_text,
)
from ddsmoothing.tables.summary import accuracy_tables, noise_tables, summary, summary_records
from ddsmoothing.tables.table import Table

__all__ = [
    "Paired",
    "Table",
    "accuracy_tables",
    "ceil_text",
    "class_records",
    "class_tables",
    "csv_text",
    "fixed_group",
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
    "provenance",
    "row_records",
    "same_inputs",
    "subset_text",
    "summary",
    "summary_records",
    "write_parquet",
]
