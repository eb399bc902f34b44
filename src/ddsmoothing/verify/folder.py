"""The two files of a run folder, parsed once more and checked line by line; see ``verify``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddsmoothing.errors import RunError
from ddsmoothing.verify.arithmetic import LEVELS as STEPS
from ddsmoothing.verify.budget import Tables, implied_size
from ddsmoothing.verify.memory import RULES, Memory, Points, check_binding, check_remembered
from ddsmoothing.verify.notes import Shares
from ddsmoothing.verify.offsets import wrong_offsets
from ddsmoothing.verify.old import is_old, new_header, new_row
from ddsmoothing.verify.rows import SHA_DIGITS, check_row
from ddsmoothing.verify.several import wrong_rule

SAMPLERS: Final = ("exact", "divided", "plan", "target")
LEVELS: Final = ("pointwise", "memory", "stateless")  # memory: as far as the run alone shows it


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that does not hold.

    Attributes:
        line: of ``results.jsonl``, None for the header or the whole.   id: of the input.   message: what is wrong.
    """

    line: int | None
    id: int | None
    message: str

    def __str__(self) -> str:
        place = "header" if self.line is None else f"line {self.line}"
        return f"{place}{'' if self.id is None else f', input {self.id}'}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked and what was found wrong.

    Attributes:
        d: numbers in one input, as its total-variation budgets imply.
        unchecked: rows whose claims rest on a memory's file that was not given.
        alone: the run is of level ``memory`` and the file was not given: attempts and regions were held against each
            other alone.
        far_unchecked, coins_unchecked: see ``Memory``.
        tv_unchecked: rows whose total-variation budget was not recomputed, since their grid is too fine.
    """

    path: Path
    rows: int
    findings: tuple[Finding, ...]
    d: int | None
    unchecked: int = 0
    alone: bool = False
    far_unchecked: int = 0
    coins_unchecked: int = 0
    tv_unchecked: int = 0

    @property
    def ok(self) -> bool:
        """True where nothing was found."""
        return not self.findings


def verify_run(
    path: str | Path,
    progress: Callable[[int], None] | None = None,
    *,
    store: str | Path | None = None,
    point: Points | None = None,
) -> Verification:
    """Recompute every bound and radius of a run folder from its counts, those of schema 1 too.

    Args:
        progress: called with the number of rows done.
        store: the memory's file, for a run of level ``memory``: rows that it answered rest on it.
        point: gives an input by its id as flat stored numbers, so that distances to regions are recomputed too.
    Raises: RunError where the folder cannot be read or its header is not a JSON object; StoreError for the memory's
        file; all else is a finding.
    """
    memory = None if store is None else Memory(Path(store))
    folder = Path(path)
    if (folder / "imported.json").exists():
        raise RunError(f"{folder} holds imported results: rounded radii are never proof, and there are no counts.")
    try:
        header = _parse((folder / "header.json").read_bytes())
        lines = (folder / "results.jsonl").read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{folder} is not a run folder: {Path(error.filename).name}: {error.strerror}.") from error
    except ValueError as error:
        raise RunError(f"{folder / 'header.json'} is not readable: {error}.") from error
    old = is_old(header)
    try:
        header = new_header(header) if old else header
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / 'header.json'} is not a header of schema 1: {error}.") from error
    findings = [Finding(line=None, id=None, message=text) for text in _run(check_header, header)]
    if memory is not None:
        findings += [Finding(line=None, id=None, message=text) for text in _run(check_binding, header, memory)]
    tables, shares, unchecked, seen = Tables(), Shares(), 0, dict[int, int]()
    sizes: dict[int, int] = {}  # d implied -> rows
    shape = header.get("shape") if not findings else None
    for number, line in enumerate(lines, start=1):
        try:
            row = new_row(_parse(line)) if old else _parse(line)
        except (ValueError, KeyError, TypeError) as error:
            findings.append(Finding(line=number, id=None, message=str(error)))
            continue
        texts = list(_run(check_row, row, header, tables))
        if memory is not None and not texts:
            texts += _run(check_remembered, row, header, memory, point)
        unchecked += memory is None and isinstance(row.get("memory"), dict) and row["memory"].get("kind") == "answered"
        key = row.get("id") if type(row.get("id")) is int else None
        if key is not None and key in seen:
            texts.append(f"its id is already on line {seen[key]}")
        elif key is not None:
            seen[key] = number
        if not texts and header["level"] == "memory":
            shares.add(row, number)
        if not texts and (d := implied_size(row, header, tables)) is not None:
            sizes[d] = sizes.get(d, 0) + 1
            if shape is not None and d != math.prod(shape):
                texts.append(f"tv implies inputs of {d} numbers, the header's shape {math.prod(shape)}")
            elif d != next(iter(sizes)):
                texts.append(f"tv implies inputs of {d} numbers, that of earlier rows {next(iter(sizes))}")
        findings += [Finding(line=number, id=key, message=text) for text in texts]
        if progress is not None:
            progress(1)
    findings += [Finding(line=line, id=key, message=text) for line, key, text in shares.wrong(header)]
    if not lines:
        findings.append(Finding(line=None, id=None, message="there are no results"))
    if not any(f.line is None for f in findings) and len(seen) > header["subset"]["size"]:
        findings.append(Finding(line=None, id=None, message=f"{len(seen)} results, more than the subset's size"))
    return Verification(
        path=folder,
        rows=len(lines),
        findings=tuple(findings),
        d=next(iter(sizes)) if len(sizes) == 1 else None,
        unchecked=unchecked,
        alone=memory is None and header.get("level") == "memory",
        far_unchecked=0 if memory is None else memory.far_unknown,
        coins_unchecked=0 if memory is None else memory.coin_unknown,
        tv_unchecked=tables.left_out,
    )


def _parse(data: bytes) -> dict[str, Any]:
    """A JSON object without NaN, infinities and repeated keys; ValueError in one line."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a field is there twice")
        return dict(pairs)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not a number")

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=refuse)
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value


def _run(check: Callable[..., Iterator[str]], *args: Any) -> Iterator[str]:
    """The findings of a check; a missing field or one of the wrong type is a finding too."""
    try:
        yield from check(*args)
    except KeyError as error:
        yield f"the field {error.args[0]!r} is missing"
    except (TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        yield f"a field is not usable: {' '.join(str(error).split())[:120]}"


def check_header(header: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a header."""
    if header["schema_version"] not in (1, 2):
        yield f"schema_version is {header['schema_version']!r}, expected 2 (or 1, of older runs)"
    for name, known in (("norm", ("l2", "l1")), ("level", LEVELS), ("sampler", SAMPLERS)):
        if header[name] not in known:
            yield f"{name} is {header[name]!r}, expected one of {', '.join(known)}"
    rule = header["rule"]
    if set(rule) - {"offsets", "stateless"} != {"vote", "bound"} or (rule["vote"], rule["bound"]) not in RULES:
        yield f"rule is {rule!r}, expected a vote and a bound that go together"
    yield from wrong_offsets(header)
    yield from wrong_rule(header)
    if header["level"] == "memory" and (
        header["label_aware"] or header["snap"] or header.get("levels", STEPS) != STEPS or "offsets" in rule
    ):
        yield "a memory takes no run that is label-aware, has class offsets, or moved inputs to a grid or used another"
    if header["randomized"] and rule["bound"] != "one-class":
        yield "the randomised bound is a one-class bound"
    if not 0 < header["alpha"] < 1:
        yield f"alpha is {header['alpha']}, expected a number between 0 and 1"
    subset, data = header["subset"], header["data"]
    expected = -(-data["length"] // subset["skip"])
    expected = expected if subset["max"] is None else min(expected, subset["max"])
    if subset.get("shard") is not None:
        index, parts = subset["shard"]
        if not 1 <= index <= parts:
            yield f"shard {index}/{parts} does not exist"
        expected = -(-(expected - index + 1) // parts)
    if subset["size"] != expected:
        yield f"the subset's size is {subset['size']}, but its rule gives {expected}"
    policy = header["policy"]
    sources = {"fixed": (), "search": ("sigma0",), "file": ("sha256",), "rule": ("sigma_grid",)}
    if header["sigma_policy"] not in sources:
        yield f"sigma_policy is {header['sigma_policy']!r}, expected one of {', '.join(sources)}"
    elif any(policy.get(name) is None for name in sources[header["sigma_policy"]]):
        yield f"the policy {header['sigma_policy']} says nothing of its {' and '.join(sources[header['sigma_policy']])}"
    if header["sigma_policy"] != "search" and any(
        policy.get(f"sigma{end}") is not None for end in ("0", "_min", "_max")
    ):
        yield "a start and a range of sigma belong to the policy search"
    if (header["sigma"] is None) == (header["sigma_policy"] == "fixed"):
        yield "sigma must be a number for the policy fixed and null otherwise"
    shape = header.get("shape")
    if shape is not None and not (type(shape) is list and all(type(size) is int and size > 0 for size in shape)):
        yield f"shape is {shape!r}, expected whole numbers from 1 on"
    for name in ("model", "data"):
        digest = header[name]["sha256"]
        if digest is not None and (len(digest) != 64 or not set(digest) <= SHA_DIGITS):
            yield f"{name}.sha256 is not a SHA-256"
