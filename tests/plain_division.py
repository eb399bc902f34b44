"""A Triton kernel that divides as none of ours may; Triton reads kernels from files."""

import triton
import triton.language as tl


@triton.jit
def plain(out, x, y):
    place = tl.arange(0, 128)
    tl.store(out + place, tl.load(x + place) / y)
