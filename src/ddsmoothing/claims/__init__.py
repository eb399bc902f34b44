"""Measurements in, claims out: rules, atoms and levels. Pure mathematics, without models and files."""

from ddsmoothing.claims.levels import LEVELS, MEMORY, POINTWISE, STATELESS, Level, level_named
from ddsmoothing.claims.measurement import Look, Measurement, Tally, measured
from ddsmoothing.claims.results import Certification, Evidence, Outcome, Prediction, total_variation
from ddsmoothing.claims.rules import ABSTAIN, RULES, Claim, Pairwise, Plurality, Rule, rule_for

__all__ = [
    "ABSTAIN",
    "LEVELS",
    "MEMORY",
    "POINTWISE",
    "RULES",
    "STATELESS",
    "Certification",
    "Claim",
    "Evidence",
    "Level",
    "Look",
    "Measurement",
    "Outcome",
    "Pairwise",
    "Plurality",
    "Prediction",
    "Rule",
    "Tally",
    "level_named",
    "measured",
    "rule_for",
    "total_variation",
]
