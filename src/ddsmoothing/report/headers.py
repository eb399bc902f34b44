"""What defines the runs of a report: what they have in common once, and a table of what they differ in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ddsmoothing.errors import printable
from ddsmoothing.report.claims import set_risk
from ddsmoothing.report.overview import likely_false
from ddsmoothing.runs import Imported, Results
from ddsmoothing.tables import Table, labels_of, provenance
from ddsmoothing.tables.facts import sampler_numbers, units_of, vote_of

UNSAID: Final = "-"
MODES: Final = ("randomized", "label_aware", "channels_last", "compiled", "snap")


def common_facts(runs: Sequence[Results]) -> list[tuple[str, str]]:
    """Names and values that are the same for all runs that say them; others' results say few."""
    return [(name, _said(values)[0]) for name, values in _facts(runs).items() if len(set(_said(values))) == 1]


def different_facts(runs: Sequence[Results]) -> Table | None:
    """What runs differ in, one row a run; None where that is nothing."""
    found = {name: values for name, values in _facts(runs).items() if len(set(_said(values))) > 1}
    if not found:
        return None
    return Table(
        title="What the runs differ in",
        columns=("run", *found),
        rows=tuple(zip(labels_of(runs), *found.values(), strict=True)),
    )


def _said(values: Sequence[str]) -> list[str]:
    return [value for value in values if value != UNSAID]


def _facts(runs: Sequence[Results]) -> dict[str, list[str]]:
    """Each fact's value for every run."""
    facts = [_facts_of(run) for run in runs]
    names = dict.fromkeys(name for one in facts for name in one)
    return {name: [printable(one.get(name, UNSAID)) for one in facts] for name in names}


def _facts_of(run: Results) -> dict[str, str]:
    if isinstance(run, Imported):
        source = f"{run.header.source}, SHA-256 {run.header.sha256}"
        return {"folder": run.name, "created": run.header.created, "vote": vote_of(run), "file": source}
    header = run.header
    options = header.policy.model_dump(exclude_none=True)
    modes = [name for name in MODES if getattr(header, name)]
    return {
        "folder": run.name,
        "created": header.created,
        "model": header.model.name,
        "model's SHA-256": header.model.sha256 or "not known",
        "data": f"{header.data.name}, {header.data.split}, {header.data.length:,} inputs",
        "SHA-256 of some inputs": header.data.sha256,
        "inputs": provenance(run),
        "norm": header.norm.upper(),
        "level": header.level,
        "vote": vote_of(run),
        "units": units_of(run),
        "sigma": f"{header.sigma_policy}, {_pairs(options) if header.sigma is None else header.sigma}",
        "grid": f"multiples of 1/{header.levels}",
        "sampler": f"{header.sampler}, {_pairs(sampler_numbers(run))}",
        "bound": header.bound,
        "risk": likely_false(set_risk(run)),
        "form": ", ".join([header.dtype, header.precision, header.device, f"{header.block_size} rows a pass", *modes]),
        "seed": str(header.seed),
        "software": _pairs(header.versions),
    }


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
