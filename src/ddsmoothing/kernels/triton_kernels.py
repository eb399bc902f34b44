"""Triton kernels: the noise of ``noise.GridBlock`` bit for bit, and its division by the grid's levels.

A part is the first rows of one noise block. Its coordinates lie in a line, row after row, four to a 64-bit word and a
whole number of words to a row; one program takes ``size`` counters of Philox4x64-10, which are ``16 size`` coordinates.
Cells of 16 bits that do not decide take words of a second stream in the order in which they occur: so ``decide`` lists
them and counts them for each program, a cumulative sum tells how many came before, and ``refine`` draws their words.

Every part has a line of FIELDS int64 numbers: seed, input id, stream, block (as bits), rows, first row of the output,
row of the centre, places of the table's ``first``, ``below`` and ``thresholds``, and its ``start``.
"""

import triton
import triton.language as tl

FIELDS = 11
_LINE = tl.constexpr(FIELDS)


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x64-10: four words for each counter.

    References: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    first = tl.full(c0.shape, 0xD2E7470EE14C6C93, tl.uint64)
    second = tl.full(c0.shape, 0xCA5A826395121157, tl.uint64)
    for step in tl.static_range(10):
        high, low = tl.umulhi(first, c0), first * c0
        c0, c1 = tl.umulhi(second, c2) ^ c1 ^ k0, second * c2
        c2, c3 = high ^ c3 ^ k1, low
        if step < 9:
            k0 += tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
            k1 += tl.full((), 0xBB67AE8584CAA73B, tl.uint64)
    return c0, c1, c2, c3


@triton.jit
def _word(line, field: tl.constexpr):
    """A word of a part's address."""
    return tl.load(line + field).to(tl.uint64, bitcast=True)


@triton.jit
def _add(out, centres, line, flat, k, on, d: tl.constexpr, width: tl.constexpr):
    """Write ``X + k`` at these coordinates of a part."""
    row = flat // width
    column = flat - row * width
    centre = centres + tl.load(line + 6) * d + column
    sums = tl.load(centre, mask=on, other=0).to(tl.int32) + k
    tl.store(out + tl.load(line + 5) * d + (row * d + column), sums.to(tl.int16), mask=on)


@triton.jit
def decide(out, centres, parts, first, cells, counts, tiles, d: tl.constexpr, mark: tl.constexpr, size: tl.constexpr):
    """Write the coordinates that 16 bits decide; list the others of each program: place << 16 | cell.

    What is written of the others is overwritten by ``refine``; so the stores are whole lines.
    """
    width: tl.constexpr = (d + 3) // 4 * 4
    part, tile = tl.program_id(0), tl.program_id(1)
    line, where = parts + part * _LINE, part * tiles + tile
    end = tl.load(line + 4).to(tl.int32) * width
    begin = tile * (16 * size)
    if begin >= end:
        tl.store(counts + where, 0)
    else:
        zero = tl.zeros((size,), tl.uint64)
        counter = (tile * size + tl.arange(0, size) + 1).to(tl.uint64)
        a, b, c, e = _philox(
            counter, zero + _word(line, 3), zero + _word(line, 2), zero, _word(line, 0), _word(line, 1)
        )
        words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, e)), (4 * size,))  # a b c e of each counter in turn
        shifts = (tl.arange(0, 4) * 16).to(tl.uint64)
        cell = tl.reshape(((words[:, None] >> shifts[None, :]) & 0xFFFF).to(tl.int32), (16 * size,))
        place = tl.arange(0, 16 * size)
        flat = begin + place
        on = flat < end
        if width != d:
            on = on & (flat % width < d)
        k = tl.load(first + tl.load(line + 7) + cell).to(tl.int32)
        undecided = (on & (k == mark)).to(tl.int32)
        rank = tl.cumsum(undecided, 0) - undecided
        tl.store(cells + where.to(tl.int64) * (16 * size) + rank, (place << 16) | cell, mask=undecided == 1)
        tl.store(counts + where, tl.sum(undecided, 0))
        _add(out, centres, line, flat, k, on, d, width)


@triton.jit
def refine(
    out, centres, parts, below, thresholds, cells, counts, upto, tiles,
    d: tl.constexpr, size: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Write the listed coordinates: 47 more bits each, and a bisection among the thresholds of their cell."""
    width: tl.constexpr = (d + 3) // 4 * 4
    part, tile = tl.program_id(0), tl.program_id(1)
    line, where = parts + part * _LINE, part * tiles + tile
    count = tl.load(counts + where)
    if count > 0:
        before = tl.load(upto + where).to(tl.int32) - count
        below += tl.load(line + 8)
        thresholds += tl.load(line + 9)
        zero = tl.zeros((lanes,), tl.uint64)
        begin = 0
        while begin < count:  # a range of a number that is read does not run in every interpreter
            lane = begin + tl.arange(0, lanes)
            on = lane < count
            listed = tl.load(cells + where.to(tl.int64) * (16 * size) + lane, mask=on, other=0)
            cell, rank = listed & 0xFFFF, before + lane
            counter = ((rank >> 2) + 1).to(tl.uint64)
            a, b, c, e = _philox(
                counter, zero + _word(line, 3), zero + _word(line, 2), zero + 1, _word(line, 0), _word(line, 1)
            )
            turn = rank & 3
            word = tl.where(turn == 0, a, tl.where(turn == 1, b, tl.where(turn == 2, c, e)))
            u = (cell.to(tl.uint64) << 47) | (word >> 17)
            low = tl.load(below + cell, mask=on, other=0)
            high = tl.load(below + cell + 1, mask=on, other=0)
            left = tl.max(high - low, 0)
            while left > 0:
                open_ = low < high
                middle = (low + high) >> 1
                threshold = tl.load(thresholds + middle, mask=open_, other=0).to(tl.uint64, bitcast=True)
                low = tl.where(open_ & (threshold <= u), middle + 1, low)
                high = tl.where(open_ & (threshold > u), middle, high)
                left = left >> 1
            k = low + tl.load(line + 10).to(tl.int32)
            _add(out, centres, line, tile * (16 * size) + (listed >> 16), k, on, d, width)
            begin += lanes


@triton.jit
def divide(
    out, sums, levels, total, d: tl.constexpr, pixels: tl.constexpr, brain: tl.constexpr, size: tl.constexpr
):  # fmt: skip
    """``sums / levels`` in float32, rounded to the type of out.

    By ``div_rn``, the division of IEEE 754: a plain ``/`` is off by up to two units in the last place. pixels > 0: the
    channels of a pixel lie together in out. brain: out is the bits of bfloat16, rounded to even here, since the
    interpreter cuts them.
    """
    at = tl.program_id(0) * size + tl.arange(0, size)
    on = at < total
    source = at
    if pixels > 0:
        channels: tl.constexpr = d // pixels
        row = at // d
        rest = at - row * d
        pixel = rest // channels
        source = row * d + (rest - pixel * channels) * pixels + pixel
    x = tl.load(sums + source, mask=on, other=0).to(tl.float32)
    y = tl.div_rn(x, tl.zeros((size,), tl.float32) + levels)
    if brain:
        bits = y.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(out + at, bits.to(tl.int16), mask=on)
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=on)
