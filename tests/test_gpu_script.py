from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from test_kernels import run

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_stage_runs_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    told = run(SCRIPT, "--dry", "--out", out)
    found: dict[str, Any] = json.loads(out.read_text())
    assert list(found) == ["targets", "machine", "identity", "noise", "rates", "certificates", "counts", "end to end"]
    for stage in found.values():
        assert not stage.keys() & {"error", "stopped"}, stage
    assert found["machine"]["fault of noise on the device"] is None
    assert found["identity"].pop("integers compared") > 1000
    wrong = {name: n for name, n in found["identity"].items() if name.startswith("d=")}
    assert len(wrong) == 12
    assert not any(wrong.values())
    assert not any(n for name, n in found["counts"].items() if "samples of" in name)
    assert all(0 <= found["end to end"][name]["ACR"] <= 2 for name in found["end to end"] if name.startswith("search"))
    assert found["end to end"]["official"].startswith("not run")
    for target in found["targets"].values():
        assert target in told


def test_a_stage_that_fails_or_is_late_stops_no_other(gpu: ModuleType, tmp_path: Path) -> None:
    bench = gpu.Bench(device=torch.device("cpu"), dry=True, out=tmp_path / "x.json", limit=60.0, wheel=None)

    def failing(_: Any, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        yield {"before": more()}
        raise RuntimeError("no such kernel")

    def endless(_: Any, more: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        for i in range(10**9):
            time.sleep(0.001)
            yield {"steps": i}

    bench.stage("failing", 10.0, failing)
    kept = json.loads((tmp_path / "x.json").read_text())["failing"]
    assert (kept["before"], kept["error"]) == (True, "RuntimeError: no such kernel")
    bench.stage("endless", 0.05, endless)
    kept = json.loads((tmp_path / "x.json").read_text())
    assert kept["endless"]["stopped"]
    assert kept["endless"]["steps"] < 10**6
    assert "failing" in kept


def test_stages_take_at_most_six_minutes(gpu: ModuleType) -> None:
    assert sum(cap for cap, _ in gpu.STAGES.values()) <= 360


def test_without_a_gpu_it_says_what_to_do(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--dry runs the same code on a CPU" in capsys.readouterr().err


def test_the_page_shows_what_the_kept_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    page = importlib.import_module("gpu_page")
    block = page.PAGE.read_text(encoding="utf-8").split(page.START)[1].split(page.END)[0]
    assert block == "\n" + page.text() + "\n"
    for file in page.RESULTS.glob("gpu-*.json"):
        found = json.loads(file.read_text())
        assert found["machine"]["fault of noise on the device"] is None
        assert not any("error" in stage for stage in found.values())
        assert sum(n for name, n in found["identity"].items() if name.startswith("d=")) == 0
