from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsmoothing.kernels.device_noise import COUNTERS, LANES, NUMBERS, fault, supported
from ddsmoothing.kernels.rounding import divides_exactly, on_grid_values, same_bits

CPU = torch.device("cpu")
TESTS = Path(__file__).parent
triton_only = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# from grid points to floats


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])


@pytest.mark.parametrize("levels", [255, 100, 65535])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_grid_points_are_divided_once(dtype: torch.dtype, levels: int) -> None:
    """The correctly rounded quotient of both numbers in that type, whatever the integers' type, in place or not."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16)
    found = on_grid_values(x, levels, dtype)
    exact = x.to(dtype).to(torch.float64) / torch.tensor(float(levels), dtype=dtype).to(torch.float64)
    assert torch.equal(bits(found), bits(exact.to(dtype)))
    for other in (x.to(torch.int32), x.to(torch.float64), x.to(dtype)):
        assert torch.equal(bits(on_grid_values(other, levels, dtype)), bits(found))
    out = torch.empty(len(x), dtype=dtype)
    assert on_grid_values(x, levels, dtype, CPU, out) is out
    assert torch.equal(bits(out), bits(found))


def test_the_reciprocal_gives_other_floats_and_is_found_out() -> None:
    """What a Python number does on CUDA."""
    x = torch.arange(256, dtype=torch.int16)
    reciprocal = x.to(torch.float32) * (1.0 / 255.0)
    assert (reciprocal != on_grid_values(x, 255, torch.float32)).float().mean() > 0.3
    assert not same_bits(lambda x: x.to(torch.float32) * torch.tensor(1.0 / 255.0), 255, torch.float32)
    assert same_bits(lambda x: x.to(torch.float32) / 255, 255, torch.float32)

    def absent(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("this device has no such type")

    assert not same_bits(absent, 255, torch.float32)


def test_where_a_device_divides_otherwise_the_cpu_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert divides_exactly(CPU, torch.float32, 255)
    monkeypatch.setattr("ddsmoothing.kernels.rounding.divides_exactly", lambda *_: False)
    x = torch.arange(256, dtype=torch.int16)
    assert torch.equal(on_grid_values(x, 255, torch.float32, CPU), x / torch.tensor(255.0))
    out = torch.empty(256)
    assert on_grid_values(x, 255, torch.float32, CPU, out) is out
    assert torch.equal(out, x / torch.tensor(255.0))


def test_gradients_pass() -> None:
    x = torch.tensor([3.0, 5.0], requires_grad=True)
    on_grid_values(x, 10, torch.float32).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 0.1)


# kernels


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@triton_only
def test_kernels_give_the_integers_of_the_cpu_in_the_interpreter() -> None:
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "kernel_cases.py", TRITON_INTERPRET="1")
    assert re.search(r"\b(\d+) passed", out)
    assert "skipped" not in out


def test_triton_is_not_imported_before_it_draws() -> None:
    modules = "ddsmoothing.kernels.device_noise, ddsmoothing.counting.device_probe, ddsmoothing.classifier"
    run("-c", f"import sys, {modules}; sys.exit('triton' in sys.modules)")


def test_a_device_that_triton_does_not_serve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    fault.cache_clear()
    assert not supported(CPU)
    assert "does not serve this device" in (fault(CPU) or "")
    fault.cache_clear()


TYPES = {
    **{"out": "*i16", "centres": "*i16", "parts": "*i64", "first": "*i16", "cells": "*i32", "counts": "*i32"},
    **{"below": "*i32", "thresholds": "*i64", "upto": "*i64", "tiles": "i32"},
    **{"sums": "*i16", "levels": "fp32", "total": "i32"},
}
KERNELS = {
    "decide": ({"size": COUNTERS}, 4, "*i16"),
    "refine": ({"size": COUNTERS, "lanes": LANES}, 2, "*i16"),
    "divide fp32": ({"size": NUMBERS, "brain": False}, 4, "*fp32"),
    "divide bf16": ({"size": NUMBERS, "brain": True}, 4, "*i16"),
}


def compiled(name: str, arch: int | str, d: int) -> Any:
    """A kernel for a device that need not be here, as ``DeviceNoise`` launches it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ddsmoothing.kernels import triton_kernels

    constants, warps, out = KERNELS[name]
    kernel = getattr(triton_kernels, name.split()[0])
    values = {"d": d, "mark": -32768, "pixels": d // 3 if d % 3 == 0 else 0, **constants}
    signature = {p.name: "constexpr" if p.is_constexpr else (TYPES | {"out": out})[p.name] for p in kernel.params}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    target = GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)
    source = ASTSource(kernel, signature, {name: values[name] for name in signature if name in values}, aligned)
    return triton.compile(source, target=target, options={"num_warps": warps})


def spilled(kernel: Any, path: Path) -> list[int]:
    """Bytes of stack and local memory, or spilled registers, of a compiled kernel."""
    import triton

    if "amdgcn" in kernel.asm:
        return [int(n) for n in re.findall(r"(?:spill_count|private_segment_fixed_size): *(\d+)", kernel.asm["amdgcn"])]
    path.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return [int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", told)]


@triton_only
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")
@pytest.mark.parametrize("arch", [80, 90, "gfx942"])
def test_kernels_compile_without_spills_and_divide_exactly(
    arch: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for name in KERNELS:
        for d in (3072, 30, 785) if name != "refine" else (3072,):
            kernel = compiled(name, arch, d)
            found = spilled(kernel, tmp_path / "kernel.cubin")
            assert found, "nothing was read"
            assert not any(found), (name, arch, d)
            text = kernel.asm["amdgcn" if "amdgcn" in kernel.asm else "ptx"]
            if isinstance(arch, int):
                assert ("div.rn.f32" in text) == name.startswith("divide")
                assert not re.search(r"div\.(full|approx)|rcp\.", text)
            else:
                assert ("v_div_fixup_f32" in text) == name.startswith("divide")


@triton_only
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")
def test_a_plain_division_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check above is against: Triton's ``/`` compiles to the division that is not exact."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    import plain_division

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    source = ASTSource(plain_division.plain, {"out": "*fp32", "x": "*fp32", "y": "fp32"})
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "div.full.f32" in text
