"""Run folders of schema 1, made before votes had a name: read as they would be written today.

Their vote is plurality. What their counts claim is derived anew; ``Header.schema_version`` stays 1, so that everyone
sees where they are from.
"""

from __future__ import annotations

from typing import Any


def header_of(old: dict[str, Any]) -> dict[str, Any]:
    """A header of schema 1 in today's fields; KeyError or TypeError where it is none."""
    new = dict(old)
    new["rule"] = {"vote": "plurality", "bound": new.pop("bound")}
    new["units"] = "pixels in [0, 1]" if old["data"]["transform"] == "x/255" else "those of the input"
    return new


def row_of(old: dict[str, Any]) -> dict[str, Any]:
    """A row of schema 1 in today's fields; KeyError, TypeError or ValueError where it is none."""
    new = dict(old)
    for name in ("norm", "level", "sampler", "bound", "alpha"):  # the header says them
        new.pop(name)
    pilot, votes, looks = new.pop("n0_counts"), new.pop("n_counts"), new.pop("looks")
    same = {"sigma": old["sigma"], "tv": new.pop("tv")}
    coin = new.pop("coin")
    new["measurements"] = [{"role": "pilot", "n": sum(pilot), "votes": pilot, **same}]
    if sum(votes):
        seen = [(n, (k,), alpha) for n, k, alpha in looks]
        fresh = {"role": "certify", "n": sum(votes), "votes": votes, "looks": seen, **same}
        new["measurements"].append(fresh if coin is None else fresh | {"coin": coin})
    return new
