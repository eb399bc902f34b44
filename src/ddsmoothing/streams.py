"""Addresses of random numbers: every one is a function of (seed, input, role, slot, block) and is used once.

It knows no laws of noise. Blocks define the noise: how many samples lie in one is a constant. ``Address`` is the only
place where an address becomes the words of a generator, ``Blocks`` the only one where blocks are handed out.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from ddsmoothing.errors import InputError

BLOCK_CELLS: Final = 2**17  # coordinates in one noise block: a constant, since blocks define the noise
SLOT_BLOCKS: Final = 2**32  # noise blocks set aside for each slot of a role: a scale, an expert, a round
_WORD = 2**64


class Role(IntEnum):
    """What noise is drawn for. No two of these ever share a random number."""

    PILOT = 0
    CERTIFY = 1
    SEARCH = 2
    COIN = 3
    PREDICT = 4


Stream = Role


def check_word(value: int, name: str) -> int:
    """Return value if it is an integer in [0, 2^64), else raise InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= int(value) < _WORD:
        raise InputError(f"{name} is {value!r}, expected an integer from 0 to 2^64 - 1.")
    return int(value)


def checked_seed(seed: int | None) -> int:
    """The seed given, or one from the operating system."""
    return secrets.randbits(63) if seed is None else check_word(seed, "seed")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Of one noise block.

    Attributes:
        seed: of the run.
        input: the input's noise key.
        role: what the noise is for.
        slot: which scale, expert or round of the role, below 2^32.
        block: within the slot, below 2^32.
    """

    seed: int
    input: int
    role: Role
    slot: int = 0
    block: int = 0

    def __post_init__(self) -> None:
        check_word(self.seed, "seed")
        check_word(self.input, "input id")
        if self.role not in tuple(Role):
            raise InputError(f"role is {self.role!r}, expected one of {', '.join(role.name for role in Role)}.")
        for name, value in (("slot", self.slot), ("block", self.block)):
            if check_word(value, name) >= SLOT_BLOCKS:
                raise InputError(f"{name} is {value}, expected an integer below 2^32.")

    @property
    def words(self) -> tuple[int, int, int, int]:
        """What a generator is keyed by: seed, input id, stream and the block among all slots'."""
        return self.seed, self.input, int(self.role), self.slot * SLOT_BLOCKS + self.block


class Blocks:
    """Hands out the noise blocks of one input, each only once.

    Args:
        d: numbers in the input.
    """

    def __init__(self, d: int) -> None:
        self._rows = rows_per_block(d)
        self._used: Counter[tuple[Role, int]] = Counter()

    def take(self, role: Role, n: int, slot: int = 0) -> int:
        """The first block for n new samples, counted over all slots, as ``philox`` and a request take it."""
        address = Address(seed=0, input=0, role=role, slot=slot, block=self._used[role, slot])
        self._used[role, slot] += -(-n // self._rows)
        if self._used[role, slot] > SLOT_BLOCKS:
            raise InputError(f"{n:,} samples do not fit the {SLOT_BLOCKS:,} noise blocks of a slot.")
        return address.words[-1]


def philox(seed: int, input_id: int, stream: int, block: int, part: int = 0) -> np.random.Philox:
    """The generator of one noise block: counter-based, so any block can be drawn on its own.

    Args:
        seed, input_id: the key.   stream, block: words 2 and 1 of the counter.   part: word 3, 1 for refinement bits.
    References: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    key = np.array([check_word(seed, "seed"), check_word(input_id, "input id")], dtype=np.uint64)
    counter = np.array([0, check_word(block, "block"), check_word(stream, "stream"), part], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def coin(seed: int, input_id: int) -> float:
    """The one coin of an input, uniform on (0, 1] in steps of 2^-53."""
    return (int(philox(seed, input_id, Role.COIN, 0).random_raw() >> 11) + 1) * 2.0**-53


def rows_per_block(d: int) -> int:
    """Samples in one noise block of a d-dimensional input."""
    return max(1, BLOCK_CELLS // d)


def noise_blocks(d: int, first_block: int, n: int) -> Iterator[tuple[int, int]]:
    """Cut n samples into noise blocks from ``first_block`` on: pairs (block, rows wanted of it)."""
    size = rows_per_block(d)
    for index in range(-(-n // size)):
        yield first_block + index, min(size, n - index * size)


class Generators:
    """Two Philox generators, for bits and for refinement bits, that are set to one noise block after another.

    Setting the state of a generator costs a tenth of making one; a worker keeps one pair.
    """

    def __init__(self) -> None:
        self.bits, self.more = np.random.Philox(0), np.random.Philox(0)

    def seek(self, key: tuple[int, int, int, int]) -> None:
        """Stand at the start of the block ``(seed, input id, stream, block)``, as ``philox`` does."""
        seed, input_id, stream, block = (check_word(word, "key") for word in key)
        for part, generator in enumerate((self.bits, self.more)):
            generator.state = {
                "bit_generator": "Philox",
                "state": {
                    "counter": np.array([0, block, stream, part], dtype=np.uint64),
                    "key": np.array([seed, input_id], dtype=np.uint64),
                },
                "buffer": np.zeros(4, dtype=np.uint64),
                "buffer_pos": 4,
                "has_uint32": 0,
                "uinteger": 0,
            }
