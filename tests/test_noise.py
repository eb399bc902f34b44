from __future__ import annotations

import math
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, kstest

from ddsmoothing.errors import InputError, SigmaError
from ddsmoothing.noise import (
    LEVELS,
    NOISES,
    FloatBlock,
    Gaussian,
    GridBlock,
    GridTable,
    Noise,
    Uniform,
    grid_table,
    snap_to_grid,
    table_of,
)
from ddsmoothing.streams import Stream, check_word, noise_blocks, philox, rows_per_block
from reference import PRECISION, normal_cdf

SEED = 20240229  # fixed: every statistical test here is a fixed computation
DRAWS = 1_000_000
LEVEL = 1e-6  # false alarms of one statistical test; there are fewer than 100


def cdf(noise: Noise, scale: float, k: int) -> Fraction:
    """``P[K <= k]`` from the definition: the real noise is at most ``(k + 1/2)/255``."""
    edge = Fraction(2 * k + 1, 2 * LEVELS)
    if isinstance(noise, Uniform):
        return min(Fraction(1), max(Fraction(0), (edge + Fraction(scale)) / (2 * Fraction(scale))))
    with localcontext(PRECISION):
        z = Decimal(edge.numerator) / Decimal(edge.denominator) / Decimal(scale)
        upper = Fraction(1) if abs(z) > 13 else Fraction(normal_cdf(abs(z)))
    return upper if z >= 0 else 1 - upper


def table_cdf(table: GridTable, k: int) -> Fraction:
    """``P[K <= k]`` of the table: the share of 63-bit numbers below the threshold."""
    j = k - table.start
    if j < 0:
        return Fraction(0)
    return Fraction(int(table.thresholds[j]), 2**63) if j < len(table.thresholds) else Fraction(1)


def draw(name: str, scale: float, d: int, rows: int, key: tuple[int, int, int, int] = (SEED, 1, 1, 0)) -> np.ndarray:
    out = np.empty((rows, d), dtype=np.int16)
    GridBlock(grid_table(name, scale), key, d).fill(out)
    return out


def chi_square(values: np.ndarray, noise: Noise, scale: float) -> float:
    """P-value of integers under the exact law; cells that expect fewer than ten are pooled with their neighbours."""
    largest = round(6 * 255 * noise.sigma(scale)) + 2
    steps = np.array([float(cdf(noise, scale, k)) for k in range(-largest - 1, largest + 1)])
    expected = np.diff(np.concatenate([[0.0], steps[1:-1], [1.0]])) * values.size
    seen = np.bincount(values.ravel().clip(-largest, largest) + largest, minlength=2 * largest + 1)
    cells: list[list[float]] = [[0.0, 0.0]]
    for e, s in zip(expected, seen, strict=True):
        if cells[-1][0] >= 10:
            cells.append([0.0, 0.0])
        cells[-1][0] += e
        cells[-1][1] += s
    if cells[-1][0] < 10 and len(cells) > 1:
        last = cells.pop()
        cells[-1] = [cells[-1][0] + last[0], cells[-1][1] + last[1]]
    wanted, got = np.array(cells).T
    return float(chi2.sf(((got - wanted) ** 2 / wanted).sum(), len(cells) - 1))


class NoiseContract:
    """What every noise owes: subclasses name the law and some scales."""

    noise: ClassVar[Noise]
    scales: ClassVar[tuple[float, ...]]

    def test_is_registered(self) -> None:
        assert type(NOISES[self.noise.name]) is type(self.noise)

    def test_sigma_and_scale_are_inverse(self) -> None:
        for sigma in (1e-3, 0.12, 1.0, 7.5):
            assert self.noise.sigma(self.noise.scale(sigma)) == pytest.approx(sigma, rel=1e-15)

    def test_sigma_is_the_standard_deviation(self) -> None:
        for scale in self.scales:
            values = self.noise.draw(np.random.default_rng(SEED), scale, (400_000,))
            assert values.dtype == np.float64
            assert values.std() == pytest.approx(self.noise.sigma(scale), rel=0.01)
            assert abs(values.mean()) < 0.01 * self.noise.sigma(scale)

    def test_snap_is_idempotent_and_near(self) -> None:
        sigma = np.geomspace(0.02, 4.0, 300).reshape(30, 10)
        snapped = self.noise.snap(sigma)
        assert snapped.shape == sigma.shape
        assert snapped.dtype == np.float64
        np.testing.assert_array_equal(self.noise.snap(snapped), snapped)
        assert np.abs(np.log(snapped / sigma)).max() < 0.06
        assert (np.diff(snapped.ravel()) >= 0).all()

    def test_table_is_the_exact_law(self) -> None:
        """tau bounds the total variation, computed exactly, and is small."""
        for scale in self.scales:
            table = grid_table(self.noise.name, scale)
            end = len(table.thresholds) // 2 + 2
            exact = [cdf(self.noise, scale, k) for k in range(-end - 1, end + 1)]
            ours = [table_cdf(table, k) for k in range(-end - 1, end + 1)]
            assert exact[0] < Fraction(1, 2**80)
            total = sum(abs((b - a) - (q - p)) for a, b, p, q in zip(exact, exact[1:], ours, ours[1:], strict=False))
            assert total / 2 <= Fraction(table.tau) - Fraction(1, 2**79)
            assert 3072 * table.tau < 1e-10

    def test_a_table_of_float64_probabilities_breaks_tau(self) -> None:
        """The check above can fail: rounding the law to 40 bits is not within tau."""
        scale = self.scales[0]
        table = grid_table(self.noise.name, scale)
        coarse = [Fraction(round(cdf(self.noise, scale, k) * 2**40), 2**40) for k in range(-60, 61)]
        exact = [cdf(self.noise, scale, k) for k in range(-60, 61)]
        total = sum(abs((b - a) - (q - p)) for a, b, p, q in zip(exact, exact[1:], coarse, coarse[1:], strict=False))
        assert total / 2 > Fraction(table.tau)

    def test_look_up_agrees_with_thresholds(self) -> None:
        for scale in self.scales:
            table = grid_table(self.noise.name, scale)
            thresholds = table.thresholds.tolist()
            undecided = 0
            for cell in range(0, 65536, 7):
                ends = [table.start + bisect_right(thresholds, u) for u in (cell << 47, ((cell + 1) << 47) - 1)]
                if table.first[cell] == -32768:
                    undecided += 1
                    assert ends[0] < ends[1]
                else:
                    assert ends == [table.first[cell]] * 2
            assert 0 < undecided < 0.06 * 65536 / 7

    def test_grid_noise_is_recomputed_from_raw_bits(self) -> None:
        """Monotone inverse CDF of 63 bits: 16 from the first stream, 47 more where those do not decide."""
        scale, d, rows = self.scales[1], 5, 300
        key = (SEED, 2**63 + 5, Stream.CERTIFY, 3)
        end = len(grid_table(self.noise.name, scale).thresholds) // 2
        exact = [math.floor(cdf(self.noise, scale, k) * 2**63 + Fraction(1, 2)) for k in range(-end, end)]
        words = philox(*key).random_raw(rows * 2)
        more = iter(philox(*key, part=1).random_raw(rows * d).tolist())
        expected, refined = np.empty((rows, d), dtype=int), 0
        for i in range(rows):
            for j in range(d):
                bits = (int(words[2 * i + j // 4]) >> (16 * (j % 4))) & 0xFFFF
                low = -end + bisect_right(exact, bits << 47)
                if low != -end + bisect_right(exact, (bits << 47) + 2**47 - 1):
                    refined += 1
                    low = -end + bisect_right(exact, (bits << 47) | (next(more) >> 17))
                expected[i, j] = low
        np.testing.assert_array_equal(draw(self.noise.name, scale, d, rows, key), expected)
        assert refined > 0

    def test_grid_noise_passes_chi_square(self) -> None:
        for number, scale in enumerate(self.scales):
            values = draw(self.noise.name, scale, 100, DRAWS // 100, (SEED, number, 1, 0))
            assert chi_square(values, self.noise, scale) > LEVEL

    def test_chi_square_rejects_a_slightly_wrong_scale(self) -> None:
        scale = self.scales[1]
        assert chi_square(draw(self.noise.name, scale * 1.02, 100, DRAWS // 100), self.noise, scale) < LEVEL

    def test_float_noise_has_the_law(self) -> None:
        scale = self.scales[0]
        out = np.empty((1000, 20))
        FloatBlock(self.noise, scale, (SEED, 0, 1, 0)).fill(out)
        law = "norm" if isinstance(self.noise, Gaussian) else "uniform"
        args = (0, scale) if law == "norm" else (-scale, 2 * scale)
        assert kstest(out.ravel(), law, args=args).pvalue > LEVEL
        assert kstest(1.03 * out.ravel(), law, args=args).pvalue < 1e-2

    def test_bad_scales_are_refused(self) -> None:
        for scale in (0.0, -1.0, math.nan, math.inf, 24.5):
            with pytest.raises(SigmaError, match="expected"):
                grid_table(self.noise.name, scale)


class TestGaussian(NoiseContract):
    noise = Gaussian()
    scales = (0.12, 0.25, 0.5, 1.0)

    def test_tails_are_as_heavy_as_they_should_be(self) -> None:
        """Beyond 4 sigma, both sides: about one draw in 16,000."""
        for sigma in (0.25, 1.0):
            values = np.concatenate([draw("gaussian", sigma, 500, 4000, (SEED, i, 1, 0)).ravel() for i in range(4)])
            edge = math.ceil(4 * 255 * sigma)
            p = 2 * float(1 - cdf(self.noise, sigma, edge - 1))
            count = int((np.abs(values.astype(int)) >= edge).sum())
            assert count > 300
            assert binomtest(count, values.size, p).pvalue > LEVEL

    def test_small_and_large_sigmas_pass_chi_square(self) -> None:
        for sigma in (0.001, 0.002, 0.004, 0.03, 3.0):
            assert chi_square(draw("gaussian", sigma, 100, 5000, (SEED, 77, 1, 0)), self.noise, sigma) > LEVEL

    @pytest.mark.parametrize("sigma", [1e-9, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.0099, 0.01, 0.0101])
    def test_tables_of_a_sigma_below_a_grid_step_are_exact_too(self, sigma: float) -> None:
        table = grid_table("gaussian", sigma)
        end = len(table.thresholds) // 2 + 2
        law = [(cdf(self.noise, sigma, k), table_cdf(table, k)) for k in range(-end, end + 1)]
        assert sum(abs(exact - ours) for exact, ours in law) <= Fraction(table.tau)

    def test_snapped_sigmas_are_three_digits_and_few(self) -> None:
        sigma = self.noise.snap(np.geomspace(0.1, 1.0, 5000))
        assert len(np.unique(sigma)) == 101
        assert all(float(f"{s:.2e}") == s for s in sigma)


class TestUniform(NoiseContract):
    noise = Uniform()
    scales = (0.3, 50.5 / 255, 0.8, 1.7)

    @pytest.mark.parametrize("m", [0, 1, 31, 127])
    def test_half_integer_lambda_is_uniform_on_integers(self, m: int) -> None:
        table = grid_table("uniform", (m + 0.5) / 255)
        for k in range(-m, m + 1):
            share = table_cdf(table, k) - table_cdf(table, k - 1)
            assert abs(share - Fraction(1, 2 * m + 1)) < Fraction(1, 10**15)
        values = draw("uniform", (m + 0.5) / 255, 50, 4000)
        assert set(np.unique(values).tolist()) == set(range(-m, m + 1))

    def test_snap_gives_half_integer_lambdas(self) -> None:
        sigma = self.noise.snap(np.array([1e-6, 0.1, 0.25, 1.0]))
        steps = np.array([self.noise.scale(float(s)) for s in sigma]) * 255 - 0.5
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
        assert steps.min() >= -1e-9

    def test_lambda_is_root_three_sigma(self) -> None:
        assert self.noise.scale(0.2) == pytest.approx(0.34641016151377546, rel=1e-15)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("kind", ["grid", "float"])
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6), d=st.integers(1, 9))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_rows_do_not_depend_on_how_many_are_asked_for(name: str, kind: str, cuts: list[int], d: int) -> None:
    def block() -> GridBlock | FloatBlock:
        key = (SEED, 4, 1, 0)
        return GridBlock(grid_table(name, 0.3), key, d) if kind == "grid" else FloatBlock(NOISES[name], 0.3, key)

    at_once, pieces = (np.empty((sum(cuts), d), dtype=np.int16 if kind == "grid" else np.float64) for _ in range(2))
    block().fill(at_once)
    source, start = block(), 0
    for rows in cuts:
        source.fill(pieces[start : start + rows])
        start += rows
    np.testing.assert_array_equal(at_once, pieces)


def state(*key: int, part: int = 0) -> bytes:
    inner = philox(*key, part=part).state["state"]
    return inner["key"].tobytes() + inner["counter"].tobytes()


def test_different_keys_give_different_states() -> None:
    keys = [(seed, i, stream, block) for seed in (0, 1) for i in (0, 1) for stream in Stream for block in (0, 1)]
    states = {state(*key, part=part) for key in keys for part in (0, 1)}
    assert len(states) == 2 * len(keys)
    assert len(set(Stream)) == 5


@pytest.mark.parametrize("place", range(4))
def test_words_above_two_to_the_63_are_distinct(place: int) -> None:
    """Through float64, as a list of Python ints would go, these would all be the same."""
    words = [2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    keys = [[5, 5, 1, 5] for _ in words]
    for key, word in zip(keys, words, strict=True):
        key[place] = word
    assert len({state(*key) for key in keys}) == len(words)
    assert len({philox(*key).random_raw(4).tobytes() for key in keys}) == len(words)


@pytest.mark.parametrize("word", [-1, 2**64, 1.0, "1", None, True, np.float64(3), np.int64(-1)])
def test_bad_words_are_refused(word: object) -> None:
    with pytest.raises(InputError, match=r"expected an integer from 0 to 2\^64 - 1"):
        check_word(word, "seed")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        philox(word, 0, 0, 0)  # type: ignore[arg-type]


def test_numpy_words_are_accepted() -> None:
    assert check_word(np.uint64(2**64 - 1), "seed") == 2**64 - 1
    assert check_word(np.int32(7), "seed") == 7


def test_blocks_of_a_stream_do_not_overlap() -> None:
    """The counter's first word counts; a whole block of the largest input uses far fewer than 2^64 steps."""
    a, b = (philox(1, 2, 1, block).random_raw(4096) for block in (0, 1))
    assert not set(a.tolist()) & set(b.tolist())


@given(d=st.integers(1, 300_000), n=st.integers(1, 2_000_000), first=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_noise_blocks_cover_n(d: int, n: int, first: int) -> None:
    if n // rows_per_block(d) > 50_000:
        n = 50_000
    blocks = list(noise_blocks(d, first, n))
    assert sum(rows for _, rows in blocks) == n
    assert [block for block, _ in blocks] == list(range(first, first + len(blocks)))
    assert all(rows == rows_per_block(d) for _, rows in blocks[:-1])


def test_unknown_noise_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'gaussian'\? Known: gaussian, uniform"):
        grid_table("gausian", 0.25)


# other grids: 16-bit inputs, coarse grids, columns with a stated step


def exact_cdf(name: str, steps: Fraction, k: int) -> Fraction:
    """``P[K <= k]`` where the scale is so many grid steps."""
    edge = Fraction(2 * k + 1, 2)
    if name == "uniform":
        return min(Fraction(1), max(Fraction(0), (edge + steps) / (2 * steps)))
    with localcontext(PRECISION):
        z = Decimal(edge.numerator) / Decimal(edge.denominator) * steps.denominator / steps.numerator
        upper = Fraction(1) if abs(z) > 13 else Fraction(normal_cdf(abs(z)))
    return upper if z >= 0 else 1 - upper


GRIDS: list[tuple[float, int | Fraction]] = [
    (0.25, 16),
    (0.25, Fraction(100, 7)),
    (0.004, 65535),
    (0.02, 65535),
    (1.5, 1 / Fraction("0.05")),
    (0.5, 1 / Fraction("0.3")),
    (12.0, 255),
]


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize(("scale", "levels"), GRIDS)
def test_tables_of_other_grids_are_within_tau(name: str, scale: float, levels: int | Fraction) -> None:
    """The total variation, summed exactly over all integers, or over a sample of every fifth where there are many."""
    table, steps = grid_table(name, scale, levels), Fraction(scale) * Fraction(levels)
    end = len(table.thresholds) // 2
    wide = end > 4000
    places = range(-end, end, max(1, end // 400) if wide else 1)
    off = [abs(exact_cdf(name, steps, k) - table_cdf(table, k)) for k in places]
    assert sum(off) <= Fraction(table.tau)
    assert max(off) <= Fraction(1, 2**63)
    assert table.tau < 2.0**-63 * len(table.thresholds) + 2.0**-80


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize(("scale", "levels"), [(0.02, 65535), (0.9, 65535), (1.5, 20)])
def test_noise_on_other_grids_is_the_inverse_cdf_of_63_bits(name: str, scale: float, levels: int) -> None:
    if name == "gaussian" and scale * levels > 10_000:
        scale = 0.06  # 4,000 steps, beyond 16-bit integers
    key = (SEED, 3, Stream.CERTIFY, 1)
    table = grid_table(name, scale, levels)
    out = np.empty((50, 6), dtype=table.first.dtype)
    GridBlock(table, key, 6).fill(out)
    words, more = philox(*key).random_raw(100), iter(philox(*key, part=1).random_raw(300).tolist())
    thresholds = table.thresholds.tolist()
    for i in range(50):
        for j in range(6):
            high = ((int(words[2 * i + j // 4]) >> (16 * (j % 4))) & 0xFFFF) << 47
            low = bisect_right(thresholds, high)
            if low != bisect_right(thresholds, high + 2**47 - 1):
                low = bisect_right(thresholds, high | (next(more) >> 17))
            assert out[i, j] == low + table.start
    spread = NOISES[name].sigma(scale) * levels
    assert float(np.abs(out).mean()) == pytest.approx(spread * (0.8 if name == "gaussian" else 0.87), rel=0.25)


def test_a_wide_noise_has_integers_beyond_16_bits() -> None:
    table = grid_table("uniform", 0.9, 65535)
    out = np.empty((200, 8), dtype=np.int32)
    GridBlock(table, (SEED, 1, 1, 0), 8).fill(out)
    assert table.undecided == -(2**31)
    assert np.abs(out).max() > 2**15
    assert np.abs(out).max() <= 0.9 * 65535 + 1


def test_eight_bit_tables_are_16_bit_integers_up_to_the_largest_sigma() -> None:
    for name, scale in (("gaussian", 12.0), ("uniform", Uniform().scale(12.0))):
        table = grid_table(name, scale)
        assert table.first.dtype == np.int16
        reach = bisect_right(table.thresholds.tolist(), 2**63 - 1) + table.start
        assert reach + LEVELS < 2**15


def test_noise_is_never_cut_to_a_narrower_type() -> None:
    with pytest.raises(SigmaError, match="more than the int16"):
        GridBlock(grid_table("gaussian", 16.0), (SEED, 1, 1, 0), 8).fill(np.empty((2, 8), dtype=np.int16))


@pytest.mark.parametrize(("scale", "levels"), [(1.2, 65535), (0.1, 0), (0.1, -255), (12.0, 10**9)])
def test_grids_that_are_too_fine_are_refused(scale: float, levels: int) -> None:
    with pytest.raises(SigmaError, match="coarser grid or float noise"):
        grid_table("gaussian", scale, levels)


@given(
    x=st.lists(st.floats(-5, 5), min_size=1, max_size=6),
    levels=st.sampled_from([255, 65535, 16, Fraction(100, 7), 1 / Fraction("0.05")]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_snapping_says_how_far_it_moved(x: list[float], levels: int | Fraction) -> None:
    integers, far = snap_to_grid(np.array([x]), "l1", levels)
    moves = [abs(Fraction(v) - Fraction(int(k)) / levels) for v, k in zip(x, integers[0], strict=True)]
    assert max(moves) <= Fraction(1, 2) / levels + Fraction(1, 10**12)
    assert sum(moves) <= Fraction(float(far[0])) <= sum(moves) + Fraction(len(x), 10**13)
    (far_2,) = snap_to_grid(np.array([x]), "l2", levels)[1]
    assert sum(move**2 for move in moves) <= Fraction(float(far_2)) ** 2


def test_a_grid_input_does_not_move() -> None:
    x = np.arange(256).reshape(1, -1) / 255
    integers, far = snap_to_grid(x, "l2")
    np.testing.assert_array_equal(integers[0], np.arange(256))
    assert far[0] < 1e-13


# undecided cells: one comparison where a cell holds one threshold, a search elsewhere


def by_search(table: GridTable, u: np.ndarray) -> np.ndarray:
    """The definition: ``start + #{thresholds <= u}``."""
    return np.searchsorted(table.thresholds, u, side="right") + table.start


def by_cells(table: GridTable, u: np.ndarray, more: np.random.Generator) -> np.ndarray:
    """As noise is drawn: 16 bits first, the next 47 where they do not decide, 17 bits of the word unused."""
    cells = (u >> np.uint64(47)).astype(np.intp)
    found = table.first[cells].astype(np.int64)
    undecided = np.flatnonzero(found == table.undecided)
    words = (u[undecided] << np.uint64(17)) | more.integers(0, 2**17, undecided.size, dtype=np.uint64)
    found[undecided] = table.refined(cells[undecided], words)
    return found


def words_near(table: GridTable, more: np.random.Generator) -> np.ndarray:
    """63-bit words at and next to every threshold, at both ends of every cell, and anywhere."""
    edges = table.thresholds
    near = np.concatenate(
        [edges[edges >= 2] - np.uint64(2), edges[edges >= 1] - np.uint64(1), edges, edges + np.uint64(1)]
    )
    cells = np.arange(65536, dtype=np.uint64) << np.uint64(47)
    ends = cells + np.uint64(2**47 - 1)
    return np.concatenate([near[near < 2**63], cells, ends, more.integers(0, 2**63, 50_000, dtype=np.uint64)])


@pytest.mark.parametrize(
    ("name", "scale", "levels"),
    [
        *(("gaussian", sigma, 255) for sigma in (0.001, 0.12, 0.25, 0.5, 1.0, 4.0, 12.0)),
        *(("uniform", scale, 255) for scale in (0.5 / 255, 50.5 / 255, 0.8, 20.0)),
        ("gaussian", 0.1, 65535),
        ("gaussian", 2.0, 100),
    ],
)
def test_cells_and_the_search_agree_next_to_every_threshold(name: str, scale: float, levels: int) -> None:
    table, more = grid_table(name, scale, levels), np.random.default_rng(SEED)
    u = words_near(table, more)
    np.testing.assert_array_equal(by_cells(table, u, more), by_search(table, u))


@given(
    cells=st.lists(st.integers(0, 65535), min_size=1, max_size=12),
    lows=st.lists(st.sampled_from([0, 1, 2, 2**46, 2**47 - 2, 2**47 - 1]), min_size=12, max_size=12),
    start=st.integers(-9, 9),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_thresholds_may_be_equal_and_lie_on_the_edges_of_cells(cells: list[int], lows: list[int], start: int) -> None:
    pairs = zip(cells, lows[: len(cells)], strict=True)
    thresholds = np.array(sorted((cell << 47) | low for cell, low in pairs), dtype=np.uint64)
    table, more = table_of(thresholds, start, 0.0, True), np.random.default_rng(SEED)
    u = words_near(table, more)
    np.testing.assert_array_equal(by_cells(table, u, more), by_search(table, u))


def test_a_threshold_taken_one_too_high_is_found_out() -> None:
    """The words above are near enough: an integer that begins one word late differs."""
    right, more = grid_table("gaussian", 0.5), np.random.default_rng(SEED)
    late = table_of(right.thresholds + np.uint64(1), right.start, 0.0, True)
    u = words_near(right, more)
    wrong = np.flatnonzero(by_cells(late, u, more) != by_search(right, u))
    assert set(u[wrong].tolist()) == set(right.thresholds[right.thresholds < 2**63].tolist())
