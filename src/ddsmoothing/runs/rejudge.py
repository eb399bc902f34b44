"""A run's own samples under another rule, to compare votes and bounds. Nothing is written."""

from __future__ import annotations

from dataclasses import replace

from ddsmoothing.claims import Look, Rule
from ddsmoothing.errors import RunError
from ddsmoothing.runs.schema import ResultRow, RuleSpec
from ddsmoothing.runs.store import Run


def rejudged(run: Run, rule: Rule) -> Run:
    """The run as it would read if this rule had been asked for; of level ``pointwise``, from the same samples.

    Which rule counts has to be fixed before the samples are seen: taking the better of two afterwards fails more often
    than alpha says.

    Raises: RunError for runs whose samples depend on the rule, or that a memory has changed.
    """
    if run.header.stateless is not None:
        raise RunError(f"{run.path} is of a rule over several sigmas, whose samples no other rule asks for.")
    looks = {len(row.fresh.looks) for row in run.rows if row.fresh is not None}
    if looks - {1} or any(row.memory is not None for row in run.rows):
        raise RunError(f"{run.path} cannot be judged by another rule: expected certificates of one look each.")
    if rule.asks_twice and not run.header.judge.asks_twice:
        raise RunError(f"{run.path} counted no wins, which a {rule.vote} vote needs.")
    if rule.asks_twice and rule.config() != run.header.judge.config():
        raise RunError(f"{run.path} asked for the wins of classes that other offsets chose; certify it with these.")
    header = run.header.model_copy(update={"rule": RuleSpec.model_validate(rule.config())})
    changed = replace(run, header=header)
    return replace(changed, rows=tuple(_row(changed, rule, row) for row in run.rows))


def _row(run: Run, rule: Rule, row: ResultRow) -> ResultRow:
    if row.fresh is not None:
        counts = rule.counts(row.fresh, rule.choose(row.pilot))
        fresh = replace(row.fresh, looks=(Look(row.fresh.n, counts, rule.share(run.header.alpha)),))
        if not rule.asks_twice:
            fresh = replace(fresh, anchor=None, wins=None)
        row = row.model_copy(update={"measurements": (row.pilot, fresh)})
    claim = run.header.claim(row)
    found = {name: getattr(claim, name) for name in ("prediction", "radius", "p_lower", "p_upper")}
    found["reason"] = row.reason if row.fresh is None else "certified" if claim.prediction >= 0 else "abstained"
    return row.model_copy(update=found | {"correct": None if row.label is None else claim.prediction == row.label})
