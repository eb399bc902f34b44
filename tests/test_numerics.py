from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ddsmoothing.kernels.numerics import settled_numerics, told

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # settings are there without a device


def read() -> dict[str, Any]:
    """Everything that can be read of the settings, by the older and the newer names."""
    backends = torch.backends
    readers: dict[str, Callable[[], Any]] = {
        "matmul": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn": lambda: backends.cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
        "benchmark": lambda: backends.cudnn.benchmark,
        "deterministic": lambda: backends.cudnn.deterministic,
    }
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        readers["new matmul"] = lambda: backends.cuda.matmul.fp32_precision
        readers["new conv"] = lambda: backends.cudnn.conv.fp32_precision
        readers["new rnn"] = lambda: backends.cudnn.rnn.fp32_precision
    found = {}
    for name, reader in readers.items():
        try:
            found[name] = reader()
        except RuntimeError:
            found[name] = "unreadable"
    return found


def older_on() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def older_off() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def medium() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True


def newer() -> None:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cudnn.rnn.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def as_they_came() -> Iterator[None]:
    with settled_numerics(CUDA):
        older_off()
        yield


@pytest.mark.parametrize("setting", [older_on, older_off, medium, newer, lambda: None])
@pytest.mark.parametrize("tf32", [False, True])
def test_settings_are_made_told_and_given_back(setting: Callable[[], None], tf32: bool) -> None:
    setting()
    before = read()
    with pytest.raises(KeyError), settled_numerics(CUDA, tf32=tf32) as record:
        inside = read()
        assert record == told(CUDA)
        assert record["tf32"] is tf32
        assert (inside["matmul"], inside["cudnn"], inside["benchmark"], inside["deterministic"]) == (
            *(tf32, tf32),
            *(False, True),
        )
        assert inside["precision"] == ("high" if tf32 else "highest")
        raise KeyError
    after = read()
    assert {name: after[name] for name in before if before[name] != "unreadable"} == {
        name: value for name, value in before.items() if value != "unreadable"
    }


def test_nothing_is_changed_where_there_is_nothing_to_set() -> None:
    older_on()
    before = read()
    with settled_numerics(CPU) as record:
        assert record == {}
        assert read() == before


def test_deterministic_algorithms_are_told() -> None:
    assert told(CUDA)["deterministic_algorithms"] is False
    torch.use_deterministic_algorithms(True)
    try:
        assert told(CUDA)["deterministic_algorithms"] is True
    finally:
        torch.use_deterministic_algorithms(False)
