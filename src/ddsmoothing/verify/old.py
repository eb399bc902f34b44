"""Runs of schema 1 in the fields of schema 2, so that one set of checks serves both; see ``verify``."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def is_old(header: Json) -> bool:
    """Whether a run was made before votes had a name."""
    return header.get("schema_version") == 1


def new_header(old: Json) -> Json:
    """Its vote is plurality."""
    rest = {key: value for key, value in old.items() if key != "bound"}
    return {"label_aware": False, "randomized": False} | rest | {"rule": {"vote": "plurality", "bound": old["bound"]}}


def new_row(old: Json) -> Json:
    """Two measurements in place of two lists of counts; without a record of looks, all samples were looked at once."""
    pilot, votes, looks = old["n0_counts"], old["n_counts"], old["looks"]
    same = {"sigma": old["sigma"], "tv": old["tv"]}
    parts: list[Json] = [{"role": "pilot", "n": sum(pilot), "votes": pilot} | same]
    if sum(votes):
        fresh = {"role": "certify", "n": sum(votes), "votes": votes, "looks": [(n, [k], a) for n, k, a in looks]} | same
        parts.append(fresh if old.get("coin") is None else fresh | {"coin": old["coin"]})
    return old | {"measurements": parts}
