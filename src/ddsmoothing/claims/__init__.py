"""Measurements in, claims out: rules, atoms and levels. Pure mathematics, without models and files."""

from ddsmoothing.claims.cascade import Cascade
from ddsmoothing.claims.gated import Gated
from ddsmoothing.claims.levels import LEVELS, MEMORY, POINTWISE, STATELESS, Level, level_named
from ddsmoothing.claims.measurement import Look, Measurement, Tally, measured
from ddsmoothing.claims.named import RULES, rule_for, stateless_rule
from ddsmoothing.claims.offsets import OffsetPairwise, check_offsets
from ddsmoothing.claims.pair_table import PairTable
from ddsmoothing.claims.results import Certification, Evidence, Outcome, Prediction, total_variation
from ddsmoothing.claims.rules import ABSTAIN, Claim, Pairwise, Plurality, Rule
from ddsmoothing.claims.several import StatelessRule

__all__ = [
    "ABSTAIN",
    "LEVELS",
    "MEMORY",
    "POINTWISE",
    "RULES",
    "STATELESS",
    "Cascade",
    "Certification",
    "Claim",
    "Evidence",
    "Gated",
    "Level",
    "Look",
    "Measurement",
    "OffsetPairwise",
    "Outcome",
    "PairTable",
    "Pairwise",
    "Plurality",
    "Prediction",
    "Rule",
    "StatelessRule",
    "Tally",
    "check_offsets",
    "level_named",
    "measured",
    "rule_for",
    "stateless_rule",
    "total_variation",
]
