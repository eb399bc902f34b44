"""What is wrong with one row of a run, held against its own counts and the header; see ``verify``."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from ddsmoothing.verify.budget import Tables, check_noise
from ddsmoothing.verify.counts import TOLERANCE, Judged, Row, fresh_of, judged, measurements_of
from ddsmoothing.verify.notes import check_note
from ddsmoothing.verify.several import check_several, judged_several, several

SHA_DIGITS: Final = frozenset("0123456789abcdef")


def check_row(row: Row, header: Row, tables: Tables) -> Iterator[str]:
    """What is wrong with one row, held against its own counts and the header."""
    yield from _identity(row, header)
    one_sigma = several(header) is None
    wrong = list(measurements_of(row, header) if one_sigma else check_several(row, header, tables))
    yield from wrong
    if wrong:
        return
    if one_sigma:
        yield from check_noise(row, header, tables)
    found = judged(row, header) if one_sigma else judged_several(row, header)
    yield from found.wrong
    if header["level"] == "memory":
        yield from check_note(row, header, found)
        return
    yield from _claims(row, found)
    if not found.wrong:
        yield from _radius(row, found)


def _identity(row: Row, header: Row) -> Iterator[str]:
    if type(row["id"]) is not int:
        raise ValueError(f"id is {row['id']!r}")
    if (row.get("memory") is not None) != (header["level"] == "memory"):
        yield "a memory's note belongs to level memory, and only there"
    skip, most, shard = header["subset"]["skip"], header["subset"]["max"], header["subset"].get("shard")
    position, rest = divmod(row["id"], skip)
    if rest or row["id"] >= header["data"]["length"] or (most is not None and position >= most) or position < 0:
        yield "this input does not belong to the run's subset"
    elif shard is not None and position % shard[1] != shard[0] - 1:
        yield f"this input does not belong to shard {shard[0]} of {shard[1]}"
    yield from _sigma(row, header)
    if (row["choice"] is not None) != (header["sigma_policy"] == "search"):
        yield "a record of the sigma search stands with the policy search, and only there"
    if len(row["input_sha256"]) != 64 or not set(row["input_sha256"]) <= SHA_DIGITS:
        yield "input_sha256 is not a SHA-256"
    label = row["label"]
    if label is not None and (type(label) is not int or not 0 <= label < header["num_classes"]):
        yield f"label is {label!r}, expected one of {header['num_classes']} classes"


def _sigma(row: Row, header: Row) -> Iterator[str]:
    """The sigma is one that the run may choose."""
    policy, sigma = header["policy"], row["sigma"]
    low, high, grid = policy.get("sigma_min"), policy.get("sigma_max"), policy.get("sigma_grid")
    if header["sigma_policy"] == "fixed" and sigma != header["sigma"]:
        yield f"sigma is {sigma}, the run's fixed sigma {header['sigma']}"
    if (low is not None and sigma < low) or (high is not None and sigma > high):
        yield f"sigma is {sigma}, outside the run's range [{low}, {high}]"
    if grid is not None and sigma not in grid:
        yield f"sigma is {sigma}, not one of the run's"


def _claims(row: Row, found: Judged) -> Iterator[str]:
    """Class, correctness and reason, which follow from the bounds and the distance the input was moved."""
    expected = found.top if found.certified else -1
    if row["prediction"] != expected:
        yield f"prediction is {row['prediction']}, the counts give {expected}"
    if row["correct"] is not (None if row["label"] is None else row["prediction"] == row["label"]):
        yield f"correct is {row['correct']}, which does not fit label and prediction"
    reasons = ("certified",) if found.certified else ("abstained",)
    if fresh_of(row) is not None and row["reason"] not in reasons:
        separates = "" if found.certified else "do not "
        yield f"reason is {row['reason']!r}, but the bounds {separates}separate the class"


def _radius(row: Row, found: Judged) -> Iterator[str]:
    """The radius: at most what the bounds give, and no further below it than the tolerance."""
    radius, (low, high) = Fraction(row["radius"]), found.radius
    if not found.certified:
        if radius:
            yield f"radius is {row['radius']} without a certificate"
    elif radius > high:
        yield f"radius is {row['radius']}, more than the {float(high):.9f} that the bounds give"
    elif radius < low * (1 - TOLERANCE) - TOLERANCE:
        yield f"radius is {row['radius']}, less than the {float(low):.9f} that the bounds give"
