"""One field of a run folder changed to a plausible other value: it is named, or docs/verification.md says why not."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.claims import PairTable
from ddsmoothing.errors import DdsmoothingWarning
from ddsmoothing.sigma import SigmaPolicy

PAGE = Path(__file__).parents[1] / "docs" / "verification.md"
Place = tuple[str | int, ...]
WORDS = {  # what else a word might plausibly be
    "pairwise": "plurality",
    "one-class": "two-class",
    "l2": "l1",
    "pointwise": "memory",
    "stateless": "pointwise",
    "exact": "plan",
    "divided": "exact",
    "rule": "fixed",
    "pairs": "cascade",
    "plan": "exact",
    "search": "file",
    "fixed": "file",
    "grid": "float",
    "certified": "abstained",
    "abstained": "planned",
    "float32": "float64",
    "fp32": "bf16",
    "test": "train",
}


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Where the leaves of a JSON value are; of a list of numbers the first and the largest."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*here, key))
    elif isinstance(value, list) and value and not any(isinstance(one, (list, dict)) for one in value):
        yield from {(*here, 0), (*here, value.index(max(value)))}
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*here, i))
    else:
        yield here


def other(value: Any) -> Any:
    """Another value that might well stand there."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.01 + 1e-6
    if isinstance(value, str):
        return WORDS.get(value, value[:-1] + ("0" if value[-1:] != "0" else "1"))
    return 1


def name_of(place: Place) -> str:
    """As the page names it: positions in lists left out."""
    return ".".join(str(part) for part in place if not isinstance(part, int))


def unverifiable() -> set[str]:
    """Names that the page lists as those that nothing in the folder, the model or the data can show to be false."""
    text = PAGE.read_text().partition("<!-- unverifiable -->")[2].partition("<!-- end -->")[0]
    return {
        cell.strip(" `")
        for line in text.splitlines()
        if line.startswith("| `")
        for cell in line.split("|")[1].split(",")
    }


def changed(source: Path, target: Path, file: str, place: Place) -> None:
    shutil.copytree(source, target)
    lines = (target / file).read_text().splitlines() if file == "results.jsonl" else [(target / file).read_text()]
    value = json.loads(lines[0])
    inner = value
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = other(inner[place[-1]])
    lines[0] = json.dumps(value)
    (target / file).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def forged(make_run: Callable[..., dds.Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forged")
    make_run(root / "fixed", maximum=3)
    make_run(root / "search", SigmaPolicy.search(0.25), n0=None, n=None, n_max=1000, maximum=3)
    make_run(root / "plurality", vote="plurality", maximum=3)
    table = PairTable(sigmas=(0.4, 0.9), slots=((0, 1), (1, 0)), groups=(0, 1) * 5)
    make_run(root / "stateless", SigmaPolicy.stateless(table), maximum=3)
    return {name: root / name for name in ("fixed", "search", "plurality", "stateless")}


def silent(cli: Callable[..., Answer], source: Path, tmp_path: Path, file: str, every: int) -> set[str]:
    """Names of the fields whose change neither the arithmetic nor drawing every row again notices."""
    text = (source / file).read_text()
    value = json.loads(text.splitlines()[0] if file == "results.jsonl" else text)
    missed = set()
    for number, place in enumerate(places(value)):
        if number % every or name_of(place) == "compiled":  # which would compile
            continue
        target = tmp_path / f"{file}-{number}"
        changed(source, target, file, place)
        where = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DdsmoothingWarning)  # of inputs off the grid that a header states
            if cli("verify", target, "--resample", 3, *where).code == 0:
                missed.add(name_of(place))
        shutil.rmtree(target)
    return missed


@pytest.mark.parametrize("file", ["header.json", "results.jsonl"])
def test_some_changed_fields_are_named(
    cli: Callable[..., Answer], forged: dict[str, Path], tmp_path: Path, file: str
) -> None:
    assert silent(cli, forged["fixed"], tmp_path, file, 7) <= unverifiable()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["header.json", "results.jsonl"])
@pytest.mark.parametrize("run", ["fixed", "search", "plurality", "stateless"])
def test_every_changed_field_is_named(
    cli: Callable[..., Answer], forged: dict[str, Path], tmp_path: Path, run: str, file: str
) -> None:
    assert silent(cli, forged[run], tmp_path, file, 1) <= unverifiable()
