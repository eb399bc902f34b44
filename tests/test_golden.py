"""Files of every schema, kept from the days they were made (``tools/make_golden.py``), are read as what they said."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.cli import main
from ddsmoothing.errors import StoreError
from ddsmoothing.memory import Store
from ddsmoothing.report import card_of, card_schema
from ddsmoothing.runs import load_results
from ddsmoothing.runs.schema import SCHEMA_VERSION
from ddsmoothing.sigma import load_sigmas
from ddsmoothing.stateless import load_offsets, load_pairs
from ddsmoothing.training.checkpoint import load_checkpoint

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = sorted(path for path in GOLDEN.iterdir() if path.is_dir())
RUNS = [(folder, name) for folder in SCHEMAS for name in json.loads((folder / "expected.json").read_text())["runs"]]
of_each_run = pytest.mark.parametrize(
    ("folder", "name"), RUNS, ids=lambda value: value.name if isinstance(value, Path) else value
)
of_each_schema = pytest.mark.parametrize("folder", SCHEMAS, ids=lambda folder: folder.name)


def said(folder: Path) -> dict[str, Any]:
    """What the files said to the code that made them."""
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return found


@pytest.fixture
def memory(tmp_path: Path) -> Callable[[Path], Path]:
    """The memory of a schema as a file of its own, since to open one may change it."""

    def unpacked(folder: Path) -> Path:
        path = tmp_path / "regions.memory"
        path.write_bytes(gzip.decompress((folder / "regions.memory.gz").read_bytes()))
        path.chmod(0o400)
        return path

    return unpacked


def test_there_are_files_and_they_are_small() -> None:
    assert [folder.name for folder in SCHEMAS] == [f"schema{i + 1}" for i in range(SCHEMA_VERSION)]
    for folder in SCHEMAS:
        assert {"fixed", "chosen", "two-class", "randomized", "target", "memory"} <= said(folder)["runs"].keys()
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 200_000


@of_each_run
def test_runs(folder: Path, name: str) -> None:
    run, then = dds.load_run(folder / name), said(folder)["runs"][name]
    assert (run.header.level, run.header.alpha, run.header.seed) == (then["level"], then["alpha"], then["seed"])
    for field in ("ids", "prediction", "label", "correct", "sigma"):
        assert getattr(run, field).tolist() == then[field], field
    np.testing.assert_allclose(run.radius, then["radius"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.p_lower, then["p_lower"], rtol=0, atol=1e-12)
    assert [row.samples for row in run.rows] == then["samples"]
    assert dds.certified_accuracy(run, [0.0, 0.25, 0.5]).tolist() == then["certified_accuracy"]
    assert any(radius > 0.0 for radius in then["radius"])  # else nothing would be compared


@of_each_run
def test_runs_are_tabulated_and_exported(folder: Path, name: str, tmp_path: Path) -> None:
    assert load_results(folder / name).ids.tolist() == said(folder)["runs"][name]["ids"]
    assert main(["analyze", str(folder / name), "--json"]) == 0
    assert main(["export", str(folder / name), str(tmp_path / "table.tsv"), "--format", "dds"]) == 0
    lines = (tmp_path / "table.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(said(folder)["runs"][name]["ids"])


@of_each_run
def test_runs_are_verified(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder / name)]) == 0, capsys.readouterr().out


@of_each_schema
def test_the_memory(folder: Path, memory: Callable[[Path], Path]) -> None:
    if folder.name == "schema1":  # its attempts have no noise of their own: a copy would draw the same again
        with pytest.raises(StoreError, match="has schema 1, this version reads 2"):
            Store.open(memory(folder))
        return
    store, then = Store.open(memory(folder)), said(folder)["memory"]
    assert (store.sealed, store.attempts) == (then["sealed"], then["attempts"])
    assert [{"class": one.label, "radius": one.radius} for one in store.regions()] == then["regions"]
    assert then["regions"]
    store.close()


@of_each_schema
def test_the_memory_is_verified(folder: Path, memory: Callable[[Path], Path]) -> None:
    path = memory(folder)
    if folder.name == "schema1":
        assert main(["memory", "verify", str(path)]) == 1
        return
    assert main(["memory", "info", str(path)]) == 0
    assert main(["memory", "verify", str(path)]) == 0


@pytest.mark.parametrize("folder", SCHEMAS[1:], ids=lambda folder: folder.name)
def test_what_was_fitted(folder: Path) -> None:
    """Class offsets, a run with them, and a pair table; schema 1 has none."""
    (offsets, _), (pairs, _), then = (
        load_offsets(folder / "offsets.json"),
        load_pairs(folder / "pairs.json"),
        said(folder),
    )
    assert list(offsets.offsets) == then["offsets"]
    assert list(dds.load_run(folder / "offsets").header.rule.offsets) == then["offsets"]
    assert any(then["offsets"])
    assert [list(pairs.sigmas), [list(row) for row in pairs.slots]] == [then["pairs"]["sigmas"], then["pairs"]["slots"]]
    assert (pairs.pays, [one.sigma for one in pairs.fixed]) == (then["pairs"]["pays"], then["pairs"]["fixed"])
    assert len({slot for row in then["pairs"]["slots"] for slot in row}) == 2  # both sigmas are used


@of_each_schema
def test_the_sigma_file(folder: Path) -> None:
    found = load_sigmas(folder / "sigmas.json")
    assert {str(i): sigma for i, sigma in found.sigma.items()} == said(folder)["sigmas"]


@of_each_schema
def test_the_checkpoint(folder: Path) -> None:
    state, then = load_checkpoint(folder / "checkpoint.safetensors"), said(folder)["checkpoint"]
    assert (state.position.epoch, state.sigma.tolist()) == (then["epoch"], then["sigma"])


@of_each_schema
def test_the_model(folder: Path) -> None:
    model = dds.load_model(str(folder / "model.safetensors"), arch="training_helpers:toy_model")
    image = torch.linspace(0, 1, 36).reshape(1, 1, 6, 6)
    torch.testing.assert_close(model(image).squeeze(0), torch.tensor(said(folder)["model"]))


@of_each_schema
def test_the_card(folder: Path) -> None:
    """An old card says what its run says; one of today's schema is also what today's schema describes."""
    old, new = json.loads((folder / "card.json").read_text()), card_of(dds.load_run(folder / "chosen"))
    assert old["evidence"] == new.evidence
    assert old["risk"] == new.risk.model_dump()
    for field in ("inputs", "certified", "abstained", "correct"):
        assert old["results"][field] == getattr(new.results, field), field
    if old["schema_version"] == new.schema_version:
        jsonschema.validate(old, card_schema())
