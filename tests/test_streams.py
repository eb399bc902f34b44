from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsmoothing.errors import InputError
from ddsmoothing.noise import GridBlock, grid_table
from ddsmoothing.streams import SLOT_BLOCKS, Address, Blocks, Role, Stream, noise_blocks, philox, rows_per_block

D = 784
# The integers of early runs of benchmarks/fashion_mnist.py: seed, image, sigma, first half of the SHA-256 of pilot and
# certification noise. The seed of a row follows from its name, so counts that are kept today have the same integers.
DRAWN = {
    "multi-sigma-0.12-plain": (1596234497, 140, 0.12, "1a8905a8f78acf988eb374f2abdb1870"),
    "multi-sigma-0.25-plain": (336372332, 1140, 0.25, "b78eb697e34799ec419c5014800fe5ea"),
    "multi-sigma-0.5-plain": (2896134793, 2140, 0.5, "0e23d0c1ccbbcabd9bc39b3bada2abe9"),
    "multi-sigma-1-plain": (2755209497, 3140, 1.0, "149f238ad89db5bc58a72125e44f8af7"),
    "multi-sigma-ds": (1134091071, 4140, 1.0, "e6f5814796ef52959b8957082a6283c0"),
    "gaussian-0.25-ds": (2069343615, 5140, 0.339, "12a419b053fa9bf7ad2b1cbab9c1edf4"),
    "gaussian-1-ds2": (3970034542, 6140, 0.759, "81d9564b9eddf875c8a5e0c8dee6cbdd"),
    "smoothadv-0.5-ds": (607991923, 7140, 0.933, "628f66b81807a452d6e60ad850cd0049"),
    "macer-0.25-plain": (976192066, 8140, 0.25, "bbb82077b55d2a4c50a83a14aed5585b"),
    "macer-1-ds": (3292869990, 9140, 0.575, "045424e609788588ddb1c54cab471e6c"),
}


def noise(seed: int, i: int, sigma: float, wanted: dict[Role, int]) -> bytes:
    """The digest of all noise of these roles of one input."""
    digest = hashlib.sha256()
    for role, n in wanted.items():
        blocks = Blocks(D)
        first = blocks.take(role, n)
        for block, rows in noise_blocks(D, first, n):
            out = np.empty((rows, D), dtype=np.int16)
            address = Address(seed=seed, input=i, role=role, block=block)
            GridBlock(grid_table("gaussian", sigma), address.words, D).fill(out)
            digest.update(out.tobytes())
    return digest.digest()


@pytest.mark.parametrize("name", DRAWN)
def test_noise_of_the_first_counts_is_drawn_again(name: str) -> None:
    """The integers behind 6,100 samples of ten images, drawn by the code of an earlier day."""
    seed, i, sigma, wanted = DRAWN[name]
    assert zlib.crc32(name.encode()) == seed
    assert noise(seed, i, sigma, {Role.PILOT: 100, Role.CERTIFY: 6000}).hex()[:32] == wanted
    assert noise(seed, i, sigma, {Role.CERTIFY: 100, Role.PILOT: 6000}).hex()[:32] != wanted


words = st.integers(0, 2**64 - 1)
places = st.integers(0, SLOT_BLOCKS - 1)


@given(seed=words, i=words, role=st.sampled_from(Role), slot=places, block=places)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_an_address_is_the_block_of_a_stream(seed: int, i: int, role: Role, slot: int, block: int) -> None:
    address = Address(seed=seed, input=i, role=role, slot=slot, block=block)
    assert address.words == (seed, i, int(role), slot * 2**32 + block)
    state = philox(*address.words).state["state"]
    assert state["counter"].tolist() == [0, slot * 2**32 + block, int(role), 0]
    assert state["key"].tolist() == [seed, i]


def test_slots_and_blocks_do_not_meet() -> None:
    ends = [(slot, block) for slot in (0, 1, 2, SLOT_BLOCKS - 1) for block in (0, 1, SLOT_BLOCKS - 1)]
    found = [Address(seed=1, input=2, role=Role.SEARCH, slot=slot, block=block).words for slot, block in ends]
    assert len(set(found)) == len(ends)
    assert found[-1][-1] == 2**64 - 1


@pytest.mark.parametrize(
    "change",
    [{"seed": 2**64}, {"input": -1}, {"slot": 2**32}, {"block": 2**32}, {"slot": -1}, {"seed": 1.0}, {"block": None}],
)
def test_addresses_outside_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected an integer"):
        Address(**{"seed": 0, "input": 0, "role": Role.PILOT} | change)


def test_a_role_has_to_be_one() -> None:
    with pytest.raises(InputError, match="role is 9, expected one of PILOT, CERTIFY"):
        Address(seed=0, input=0, role=9)  # type: ignore[arg-type]


def test_roles_keep_their_numbers() -> None:
    """Counts of finished runs were drawn with them."""
    names = ("PILOT", "CERTIFY", "SEARCH", "COIN", "PREDICT")
    assert {role.name: int(role) for role in Role} == {name: number for number, name in enumerate(names)}
    assert Stream is Role


@given(
    d=st.integers(1, 200_000),
    asked=st.lists(st.tuples(st.sampled_from(Role), st.integers(0, 3), st.integers(1, 300_000)), max_size=12),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_block_is_handed_out_twice(d: int, asked: list[tuple[Role, int, int]]) -> None:
    blocks, rows = Blocks(d), rows_per_block(d)
    given_out: dict[tuple[Role, int], int] = {}
    for role, slot, n in asked:
        first = blocks.take(role, n, slot)
        assert first == slot * SLOT_BLOCKS + given_out.get((role, slot), 0)
        given_out[role, slot] = first - slot * SLOT_BLOCKS + -(-n // rows)


def test_a_slot_that_is_full_is_refused() -> None:
    blocks, everything = Blocks(D), SLOT_BLOCKS * rows_per_block(D)
    assert blocks.take(Role.SEARCH, everything, slot=3) == 3 * SLOT_BLOCKS
    with pytest.raises(InputError, match=r"expected an integer below 2\^32"):
        blocks.take(Role.SEARCH, 1, slot=3)
    with pytest.raises(InputError, match="do not fit"):
        Blocks(D).take(Role.SEARCH, everything + 1)
