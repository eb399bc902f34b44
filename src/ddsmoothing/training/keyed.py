"""Random numbers of training as a function of (seed, purpose, epoch, step, sample): vectorised, on any device.

A sample's noise depends on no other sample of its batch and on no state, so neither batches, processes nor an
interruption change it. It serves training only; certification draws from ``noise``. It knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

import torch

_SIGN: Final = 2**63
_GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit words, which wrap in torch as unsigned ones do
_FIRST: Final = 0xBF58476D1CE4E5B9 - 2**64
_SECOND: Final = 0x94D049BB133111EB - 2**64


class Purpose(IntEnum):
    """What numbers are drawn for; no two purposes share any."""

    ORDER = 0
    HELD_OUT = 1
    AUGMENTATION = 2
    SIGMA = 3
    NOISE = 4
    ASCENT = 5
    VALIDATION = 6
    MODEL = 7
    SWEEP = 8
    KEPT = 9
    TEACHER = 10
    BATCHNORM = 11
    PREDICTIONS = 12


def mixed(words: torch.Tensor) -> torch.Tensor:
    """A bijection of int64 words whose output bits each depend on all input bits; works in place.

    References: Steele, Lea, Flood 2014, Fast splittable pseudorandom number generators (SplitMix64).
    """
    words.bitwise_xor_((words >> 30).bitwise_and_(2**34 - 1)).mul_(_FIRST)
    words.bitwise_xor_((words >> 27).bitwise_and_(2**37 - 1)).mul_(_SECOND)
    return words.bitwise_xor_((words >> 31).bitwise_and_(2**33 - 1))


def keys(seed: int, purpose: Purpose, epoch: int, step: int, ids: torch.Tensor) -> torch.Tensor:
    """One int64 key ``(B,)`` for each sample id ``(B,)``."""
    found = ids.to(torch.int64).clone()
    for word in (seed, purpose, epoch, step):
        found = mixed(found.mul_(_GOLDEN).add_((word + _SIGN) % 2**64 - _SIGN))
    return found


def normal(key: torch.Tensor, copies: int, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers ``(B, copies, *shape)``, float32; the first copies do not depend on how many there are.

    Box and Muller's pairs from the two halves of each 64-bit word.
    """
    d = math.prod(shape)
    half = (d + 1) // 2
    out = torch.empty((len(key), copies, 2 * half), device=key.device)
    count = torch.arange(1, half + 1, device=key.device)
    for copy in range(copies):
        words = mixed(key[:, None] + (count + copy * half) * _GOLDEN)
        radius = ((words >> 32) + (2**31 + 1)).to(torch.float32).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words.bitwise_and_(2**32 - 1).to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
        torch.mul(radius, angle.cos(), out=out[:, copy, :half])
        torch.mul(radius, angle.sin_(), out=out[:, copy, half:])
    return out[:, :, :d].reshape(len(key), copies, *shape)


def log_uniform(key: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """One number ``(B,)`` in [low, high], its logarithm uniform; float32."""
    share = ((mixed(key + _GOLDEN) >> 32) + 2**31).to(torch.float64) * 2.0**-32
    return (math.log(low) + share * math.log(high / low)).exp().to(torch.float32).clamp(low, high)


def binomial(key: torch.Tensor, m: int, share: torch.Tensor) -> torch.Tensor:
    """How many ``(B,)`` of m independent events of probability share ``(B,)`` occur; int64."""
    words = mixed(key[:, None] + torch.arange(1, m + 1, device=key.device) * _GOLDEN)
    uniform = ((words >> 32) + 2**31).to(torch.float64) * 2.0**-32  # in [0, 1): share 0 never, share 1 always
    return (uniform < share.to(torch.float64)[:, None]).sum(1)


@contextmanager
def seeded(device: torch.device, *words: int) -> Iterator[None]:
    """Start torch's global generators, which dropout and initial weights take, from these words; put back after."""
    number = int(mixed(keys(words[0], Purpose.MODEL, 0, 0, torch.tensor(words[1:])).cumsum(0))[-1])
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(number)
        for place in cuda:
            with torch.cuda.device(place):
                torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)
        yield
