"""Several GPUs of one machine, as far as it can be tested without one: what is asked of Ray, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.cli.executor import places
from ddsmoothing.counting import cluster, on_ray
from ddsmoothing.counting.device import DeviceCounter
from ddsmoothing.counting.workers import workers_of
from ddsmoothing.devices import named_devices
from ddsmoothing.errors import InputError
from ddsmoothing.noise import Gaussian

DEMO = ("certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", "0.5")


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three CUDA devices that are not there; returns their names, which a test may change."""
    names = ["H100", "H100", "H100"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    return names


class FakeRay:
    """Keeps what is asked of Ray."""

    exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=RuntimeError)

    def __init__(self, running: bool = False) -> None:
        self.running, self.asked, self.actors, self.options = running, dict[str, Any](), list[Any](), dict[str, Any]()

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **asked: Any) -> None:
        self.asked = asked | {"visible": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 16.0, "GPU": 8.0}

    def remote(self, kind: type) -> Any:
        def options(**asked: Any) -> Any:
            self.options = asked
            return SimpleNamespace(remote=start)

        def start(*args: Any) -> Any:
            self.actors.append(args)
            return SimpleNamespace(versions=SimpleNamespace(remote=object))

        return SimpleNamespace(options=options)

    def kill(self, actor: Any) -> None: ...

    def shutdown(self) -> None: ...

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")


@contextmanager
def faked(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[FakeRay]:
    fake = FakeRay(**options)
    for module in (cluster, on_ray):
        monkeypatch.setattr(module, "ray_module", lambda: fake)
    yield fake


def test_several_devices_are_named(three: list[str]) -> None:
    assert named_devices("cuda:0, cuda:2") == (torch.device("cuda:0"), torch.device("cuda:2"))
    assert named_devices("all") == tuple(torch.device(f"cuda:{i}") for i in range(3))
    assert named_devices("cuda:1") == (torch.device("cuda:1"),)
    assert named_devices("cpu") == (torch.device("cpu"),)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("cuda:0,cuda:7", "no device 'cuda:7' here, expected one of: cpu, cuda:0, cuda:1, cuda:2"),
        ("cuda:0,cuda:0", "expected different CUDA devices"),
        ("cpu,cuda:0", "expected different CUDA devices"),
        ("cuda,cuda:1", "expected different CUDA devices"),
        ("cuda:0,", "no device ''"),
    ],
)
def test_devices_that_make_no_set_are_refused(three: list[str], names: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        named_devices(names)


def test_devices_of_several_kinds_are_refused(three: list[str]) -> None:
    three[2] = "T4"
    with pytest.raises(InputError, match=r"several kinds.*H100, T4"):
        named_devices("all")
    assert len(named_devices("cuda:0,cuda:1")) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
@pytest.mark.parametrize(("names", "text"), [("all", "no CUDA device here"), ("cuda:0,cuda:1", "no device 'cuda:0'")])
def test_what_is_not_there_is_one_line(names: str, text: str, cli: Callable, tmp_path: Path) -> None:
    answer = cli(*DEMO, "--device", names, "--out", tmp_path / "run")
    assert (answer.code, text in answer.err) == (2, True)
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_option_names_the_places(three: list[str]) -> None:
    options = {"device": "cuda:1,cuda:2", "address": None, "workers": None}
    assert places(options) == {"device": "cuda:1", "gpus": (1, 2), "executor": "ray"}
    assert places(options | {"device": "cuda:1"}) == {"gpus": ()}
    with pytest.raises(InputError, match="no --address and --workers"):
        places(options | {"workers": 2})
    with pytest.raises(InputError, match="no --address and --workers"):
        places(options | {"address": "auto"})


def test_all_of_one_device_is_that_one(three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert places({"device": "all"}) == {"device": "cuda:0", "gpus": ()}


@pytest.mark.parametrize(
    ("before", "seen"), [(None, "1,3"), ("4,5,6,7", "5,7"), ("GPU-a, GPU-b,GPU-c, GPU-d", "GPU-b,GPU-d")]
)
def test_ray_gets_these_gpus_and_each_worker_one(
    before: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of a cluster, which is not this machine
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with faked(monkeypatch) as ray, workers_of("ray", device="cuda", gpus=(1, 3)) as workers:
        assert workers is not None
        assert workers.size == 2
        assert (ray.asked["address"], ray.asked["num_gpus"], ray.asked["visible"]) == ("local", 2, seen)
        assert (ray.options["num_gpus"], ray.options["num_cpus"]) == (1, 1)
        assert [device for _, device in ray.actors] == ["cuda", "cuda"]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_without_named_gpus_ray_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with faked(monkeypatch) as ray, workers_of("ray", address="local", device="cuda") as workers:
        assert workers is not None
        assert workers.size == 8
        assert "num_gpus" not in ray.asked
    with faked(monkeypatch) as ray, workers_of("ray", address="local", workers=3):
        assert ray.asked["num_cpus"] == 3
        assert ray.options["num_gpus"] == 0
        assert [device for _, device in ray.actors] == ["cpu"] * 3


def test_gpus_that_cannot_be_given_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="belong to the executor ray"), workers_of("local", gpus=(0, 1)):
        pass
    for options in ({"device": "cpu"}, {"device": "cuda", "workers": 3}):
        with pytest.raises(InputError, match="2 GPUs have a worker each"), workers_of("ray", gpus=(0, 1), **options):
            pass
    with faked(monkeypatch, running=True), pytest.raises(InputError, match="one is in use already"):
        cluster.connect(None, None, (0, 1))
    with faked(monkeypatch), pytest.raises(InputError, match="one is in use already"):
        cluster.connect("10.0.0.1:6379", None, (0, 1))


@pytest.mark.parametrize(
    ("has", "threads"), [({"CPU": 64.0, "GPU": 8.0}, 8), ({"CPU": 4.0, "GPU": 8.0}, 1), ({"CPU": 6.0}, 6), ({}, 1)]
)
def test_noise_beside_a_gpu_may_use_its_share_of_the_cpus(
    has: dict[str, float], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"NodeID": "there", "Resources": {"CPU": 999.0}}, {"NodeID": "here", "Resources": has}]
    before = torch.get_num_threads()
    try:
        with faked(monkeypatch) as ray:
            monkeypatch.setattr(ray, "nodes", lambda: nodes, raising=False)
            on_ray.CountingWorker([], "cuda")
            assert torch.get_num_threads() == threads
            on_ray.CountingWorker([])
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_worker_on_a_gpu_counts_by_the_loop_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, model = [], torch.nn.Linear(4, 2)
    monkeypatch.setattr(torch.nn.Linear, "to", lambda self, device: moved.append(device))
    engine = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2).engine
    counter = on_ray.Shipped(engine, Gaussian(), 2, 16, "cuda").counter()
    assert isinstance(counter, DeviceCounter)
    assert moved == [torch.device("cuda")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_of_a_real_ray_see_one_of_the_named_gpus_each(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    import ray

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")  # Ray believes it
    with workers_of("ray", device="cuda", gpus=(1, 3)) as workers:
        assert workers is not None
        while workers.ready < 2:  # type: ignore[attr-defined]
            list(workers.wait())  # type: ignore[attr-defined]
        actors = [hand.actor for hand in workers.hands]  # type: ignore[attr-defined]
        seen = ray.get([one.__ray_call__.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"]) for one in actors])
        assert sorted(seen) == ["5", "7"]
        threads = ray.get([one.__ray_call__.remote(lambda _: torch.get_num_threads()) for one in actors])
        assert threads == [max(1, int(ray.cluster_resources()["CPU"] // 2))] * 2
    assert not ray.is_initialized()
