"""Which rule the name of a vote and its settings mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ddsmoothing.claims.cascade import Cascade
from ddsmoothing.claims.gated import Gated
from ddsmoothing.claims.offsets import OffsetPairwise, check_offsets
from ddsmoothing.claims.pair_table import PairTable
from ddsmoothing.claims.rules import Pairwise, Plurality, Rule
from ddsmoothing.claims.several import StatelessRule
from ddsmoothing.errors import InputError, unknown

RULES: Final[dict[str, type[Plurality | Pairwise]]] = {rule.vote: rule for rule in (Pairwise, Plurality)}
STATELESS_RULES: Final[dict[str, type[StatelessRule]]] = {rule.kind: rule for rule in (PairTable, Cascade, Gated)}


def rule_for(vote: str, bound: str = "one-class", *, offsets: Sequence[float] | None = None, norm: str = "l2") -> Rule:
    """The rule of a vote named ``pairwise`` or ``plurality``.

    Args:
        bound: ``one-class`` or ``two-class``.
        offsets: of the classes, for a pairwise vote; None for none.
        norm: which phi the offsets are thresholds of.
    """
    if vote not in RULES:
        raise InputError(unknown("vote", vote, RULES))
    if offsets is None:
        return RULES[vote](bound=bound)
    if vote != Pairwise.vote:
        raise InputError(f"class offsets belong to a pairwise vote, got the vote {vote}.")
    return OffsetPairwise(bound=bound, offsets=check_offsets(offsets), norm=norm)


def stateless_rule(
    config: Mapping[str, Any], *, num_classes: int, norm: str, offsets: Sequence[float] | None = None
) -> StatelessRule:
    """The stateless rule that ``StatelessRule.config`` describes.

    Raises: InputError where it makes no rule, or one of other classes.
    """
    options: dict[str, Any] = {key: value for key, value in config.items() if key != "kind"} | {"norm": norm}
    kind = config["kind"]
    if kind not in STATELESS_RULES:
        raise InputError(unknown("rule", kind, STATELESS_RULES))
    if kind == PairTable.kind:
        options["offsets"] = None if offsets is None else tuple(offsets)
    elif offsets is not None:
        raise InputError(f"class offsets of the whole rule belong to a pair table, got them with the rule {kind}.")
    else:
        options["classes"] = num_classes
    if kind == Gated.kind:
        options["experts"] = tuple(rule_for(**one, norm=norm) for one in options["experts"])
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    found = STATELESS_RULES[kind](**options)
    if found.num_classes != num_classes:
        raise InputError(f"the rule is of {found.num_classes} classes, expected {num_classes}.")
    return found
