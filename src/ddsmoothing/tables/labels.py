"""What runs are called, what they were made on, and what has to be said of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ddsmoothing.errors import InputError, printable
from ddsmoothing.runs import Imported, Results, Run
from ddsmoothing.runs.schema import DataIdentity, ModelIdentity
from ddsmoothing.tables.facts import is_pointwise, rule_text, sampler_numbers, vote_of, votes_text

Identity = TypeVar("Identity", DataIdentity, ModelIdentity)


def called(some: Sequence[Results], runs: Sequence[Results], names: Sequence[str]) -> list[str]:
    """Labels of some of the runs: of the names, one for each of ALL runs, those of these; without names ``labels_of``.

    Raises:
        InputError: There are not as many names as runs.
    """
    if not names:
        return labels_of(some)
    if len(names) != len(runs):
        raise InputError(f"got {len(names)} names for {len(runs)} runs, expected one for each, in their order.")
    known = dict(zip(map(id, runs), names, strict=True))
    return [printable(known[id(run)]) for run in some]


def labels_of(runs: Sequence[Results]) -> list[str]:
    """What legends and tables call runs: sigma, level, what is wrong with them, and what tells them apart.

    That is the vote, the data set and the model where runs are of several, and the folder where two would be alike.
    """
    voted = len({vote_of(run) for run in runs}) > 1
    labels = [
        _label(run) + (f", {vote_of(run)} vote" if voted else "") + data + model
        for run, data, model in zip(runs, _marks(runs, _data), _marks(runs, _model), strict=True)
    ]
    return [
        f"{label}, {printable(run.name)}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _data(run: Run) -> DataIdentity:
    return run.header.data


def _model(run: Run) -> ModelIdentity:
    return run.header.model


def _distinct(runs: Sequence[Results], identity: Callable[[Run], Identity]) -> list[Identity]:
    """The data sets or models of runs, each once; those of others' results are not known."""
    found: dict[tuple[str, int], Identity] = {}
    for run in runs:
        if isinstance(run, Run):
            one = identity(run)
            found.setdefault((one.sha256 or one.name, getattr(one, "length", 0)), one)
    return list(found.values())


def _marks(runs: Sequence[Results], identity: Callable[[Run], Identity]) -> list[str]:
    """The data set or the model of each run, where they are not all of one."""
    known = _distinct(runs, identity)
    if len(known) < 2:
        return [""] * len(runs)
    names = [one.name for one in known]
    marks = []
    for run in runs:
        if not isinstance(run, Run):
            marks.append("")
            continue
        one = identity(run)
        digest = f" {one.sha256[:8]}" if names.count(one.name) > 1 and one.sha256 else ""
        marks.append(f", {printable(one.name)}{digest}")
    return marks


def side_by_side(runs: Sequence[Results]) -> tuple[str, ...]:
    """What has to be said where runs are not of one data set, one model or one vote."""
    found = []
    for what, count in (("data sets", len(_distinct(runs, _data))), ("models", len(_distinct(runs, _model)))):
        if count > 1:
            found.append(f"Side by side stand runs of {count} {what}; their figures differ for that reason too.")
    if len({vote_of(run) for run in runs}) > 1:
        found.append(f"Side by side stand {votes_text(runs)}: smoothed classifiers of two kinds.")
    return tuple(found)


def heading(runs: Sequence[Results]) -> str:
    """``MODEL on DATA, 200 of 1,000 inputs``, and their number where runs are of several."""
    parts = [
        _counted([printable(one.name) for one in _distinct(runs, _model)], "models"),
        _counted([printable(one.name) for one in _distinct(runs, _data)], "data sets"),
    ]
    text = " on ".join(part for part in parts if part) or "Imported results"
    return f"{text}, {subset_text(runs)}"


def _counted(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}" if len(names) > 1 else "".join(names)


def _label(run: Results) -> str:
    header, mark = run.header, " (partial)" if run.partial else ""
    mark += " (rounded radii)" if run.rounded else ""
    if header.sigma is None:
        kind = "sigma unknown" if header.sigma_policy == "unknown" else rule_text(run) or "data-dependent sigma"
        return f"{kind} ({run.level}){mark}"
    text = f"fixed sigma {header.sigma:.4g}"
    if header.norm == "l1":
        text += f" (lambda {3**0.5 * header.sigma:.4g})"
    if not is_pointwise(run):  # with one sigma the other levels say what pointwise says
        text += f" ({run.level})"
    return text + mark


def provenance(run: Results) -> str:
    """Which model, data and inputs, which vote, how many samples, which alpha.

    ``MODEL on DATA, 200 of 1,000 inputs (one in 5), plurality vote, exact sampler, n0=100, n=1000, alpha 0.001``.
    """
    if isinstance(run, Imported):
        return (
            f"{len(run):,} inputs of {printable(run.header.source)}, {vote_of(run)} vote, radii rounded by others, "
            "no counts"
        )
    header = run.header
    rule = [f"one in {header.subset.skip}"] if header.subset.skip > 1 else []
    rule += [f"at most {header.subset.max:,}"] if header.subset.max is not None else []
    rule += ["shard {} of {}".format(*header.subset.shard)] if header.subset.shard is not None else []
    text = f"{printable(header.model.name)} on {printable(header.data.name)}, {_inputs(run)}"
    text += f" ({', '.join(rule)})" if rule else ""
    text += f", partial: {header.subset.size:,} were asked for" if run.partial else ""
    options = ", ".join(f"{key}={value}" for key, value in sampler_numbers(run).items())
    method = f"{vote_of(run)} vote, {printable(header.sampler)} sampler, {printable(options)}, alpha {header.alpha:g}"
    return f"{text}, {method}"


def made_on(runs: Sequence[Results], labels: Sequence[str]) -> tuple[str, ...]:
    """Which inputs and samples the runs were made on, each said once, after the runs that it is the same for."""
    runs_of: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        runs_of.setdefault(provenance(run), []).append(label)
    return tuple(f"{text}." if len(runs_of) == 1 else f"{'; '.join(some)}: {text}." for text, some in runs_of.items())


def subset_text(runs: Sequence[Results]) -> str:
    """For titles: ``200 of 1,000 inputs`` where all runs took the same part, else each one's number."""
    sizes = dict.fromkeys(_inputs(run).removesuffix(" inputs") for run in sorted(runs, key=len))
    return f"{' / '.join(sizes)} inputs"


def _inputs(run: Results) -> str:
    return f"{len(run):,} of {run.header.data.length:,} inputs" if isinstance(run, Run) else f"{len(run):,} inputs"
