"""Triton functions of the fused decoder: gathers atoms, adds them up, undoes the preparation."""

# Triton functions are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _e4m3(bits, most):
    """E4M3 of the low byte over 256: exact, since its subnormals are numbers of float16 too."""
    magnitude = bits & 0x7F
    half = ((bits & 0x80) << 8) | (tl.minimum(magnitude, most) << 7)
    value = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.where(magnitude == 0x7F, float("nan"), value)


@triton.jit
def _angles(cos, sin, rope_scale, token, pair, turned, PAIRS: tl.constexpr):
    """cos and sin `[BR, pairs]` of the pairs that are turned, 1 and 0 of all others."""
    turns = turned[:, None] & (pair < PAIRS)[None, :]
    at = token.to(tl.int64)[:, None] * PAIRS + pair[None, :]
    c = tl.load(cos + at, mask=turns, other=0.0) * rope_scale
    s = tl.load(sin + at, mask=turns, other=0.0) * rope_scale
    return tl.where(turns, c, 1.0), s


@triton.jit
def _turn_neighbours(
    x,
    first,
    cos,
    sin,
    rope_scale,
    token,
    turned,
    PAIRS: tl.constexpr,
    BR: tl.constexpr,
    W: tl.constexpr,
):
    """`x [BR, W]` with pairs (2 i, 2 i + 1) turned."""
    pair = first // 2 + tl.arange(0, W // 2)
    c, s = _angles(cos, sin, rope_scale, token, pair, turned, PAIRS)
    even, odd = tl.split(x.reshape(BR, W // 2, 2))
    return tl.join(even * c - odd * s, odd * c + even * s).reshape(BR, W)


@triton.jit
def _put(
    x,
    out,
    offset,
    column,
    stride,
    live,
    M: tl.constexpr,
    MOST: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT: tl.constexpr,
    end,
):
    x = tl.clamp(x, -MOST, MOST, propagate_nan=tl.PropagateNan.ALL).to(out.dtype.element_ty)
    at = column if UNIT else column.to(tl.int64) * stride
    mask = live[:, None] if EVEN else live[:, None] & (column < end)[None, :]
    tl.store(out + offset[:, None] + at[None, :], x, mask=mask)


RUNTIME = (
    "rope_scale",
    "total",
    "share",
    "tokens",
    "table_count",
    "first_slot",
    "stride_block",
    "stride_token",
    "stride_head",
    "stride_component",
)
"""Numbers that launches of one model differ in: no reason to compile again."""


@triton.jit(do_not_specialize=RUNTIME)
def decode(
    indices,  # [B, S] int16 or int32; four in an int64 where PACKED
    coefficients,  # [B, S] uint8 or float32; four in an int32 where PACKED
    counts,  # [B] uint8 or int32
    exponents,  # [B] int8, or None: codes are plain
    atoms,  # [sum of N, M] float16 or float32
    tables,  # [3, tables] int64: first atom, offset of the part from `out`, 1 if turned
    out,  # the first part
    block_table,  # or None
    cos,  # [tokens, PAIRS] float32, or None
    sin,
    mean,  # [tables, HEADS, M] float32, or None
    scale,  # [tables, HEADS] float32, or None
    rope_scale,
    total,  # B
    share,  # rows a stream
    tokens,
    table_count,
    first_slot,  # of the first token, counted in the block table
    stride_block,
    stride_token,
    stride_head,
    stride_component,
    M: tl.constexpr,
    S: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    PAIRS: tl.constexpr,
    HALF: tl.constexpr,  # pairs are (i, i + PAIRS), not neighbours
    PACKED: tl.constexpr,
    MOST: tl.constexpr,  # largest number written
    ALIGN: tl.constexpr,  # elements that divide every offset of a vector from `out`
    UNIT: tl.constexpr,  # components of a vector lie side by side
    W: tl.constexpr,  # a slice is two runs of W components
    BR: tl.constexpr,
    WORDS: tl.constexpr,  # times four codes of a vector in flight
):
    TURNING: tl.constexpr = (PAIRS + W - 1) // W if HALF else 0  # slices that hold pairs
    REST: tl.constexpr = 2 * PAIRS if HALF else 0  # where the components without a partner begin
    SLICES: tl.constexpr = TURNING + (M - REST + 2 * W - 1) // (2 * W)
    EVEN: tl.constexpr = (M - REST) % (2 * W) == 0 and (not HALF or PAIRS % W == 0)
    UNROLL: tl.constexpr = 4

    # The slices of a row run side by side: their stores meet in L2.
    slice_ = tl.program_id(0) % SLICES
    stream = tl.program_id(0) // SLICES
    turning = slice_ < TURNING
    if TURNING == SLICES:
        first, apart, end = slice_ * W, PAIRS, PAIRS
    elif TURNING == 0:
        first, apart, end = slice_ * 2 * W, W, M
    else:
        first = tl.where(turning, slice_ * W, REST + (slice_ - TURNING) * 2 * W)
        apart = tl.where(turning, PAIRS, W)
        end = tl.where(turning, PAIRS, M)
    second = first + apart
    second_end = M if TURNING == 0 else tl.where(turning, 2 * PAIRS, M)
    column = tl.arange(0, W)
    in_first = (first + column < end)[None, :]
    in_second = (second + column < second_end)[None, :]

    begin = stream * share
    stop = tl.minimum(begin + share, total)
    for block in range(begin, stop, BR):
        row = block + tl.arange(0, BR)
        live = row < stop
        row = tl.minimum(row, total - 1)
        flat = row // HEADS
        head = row - flat * HEADS
        table = flat // tokens
        token = flat - table * tokens
        count = tl.load(counts + row, mask=live, other=0, eviction_policy="evict_first")
        count = count.to(tl.int32)
        near = (tl.load(tables + table) * M)[:, None] + (first + column)[None, :]  # [BR, W]
        power = row * 0
        most = row * 0 + 0x7F
        if exponents is not None:
            exponent = tl.load(exponents + row, eviction_policy="evict_first").to(tl.int32)
            power = 8 - exponent
            # Past 2^-120 the largest float32 bounds a coefficient: 0x78 is 2^8.
            most = tl.minimum(most, 0x78 + 8 * (exponent + 120))
            most = tl.where(exponent > -120, 0x7F, most)

        a = tl.zeros([BR, W], tl.float32)
        b = tl.zeros([BR, W], tl.float32)
        code = row.to(tl.int64) * (S // UNROLL if PACKED else S)
        for k in tl.range(0, S, UNROLL, loop_unroll_factor=WORDS):
            if PACKED:
                at = code + k // UNROLL
                index_word = tl.load(indices + at, eviction_policy="evict_first")
                bits_word = tl.load(coefficients + at, eviction_policy="evict_first")
                counted = (1 << (8 * tl.maximum(count - k, 0))) - 1  # of no use from 4 on
                bits_word = tl.where(k + UNROLL <= count, bits_word, bits_word & counted)
            for j in tl.static_range(UNROLL):
                if PACKED:
                    index = (index_word >> (16 * j)).to(tl.int32) & 0xFFFF
                    weight = _e4m3(bits_word >> (8 * j), most)
                else:
                    at = code + (k + j)
                    counted = k + j < count
                    index = tl.load(indices + at, mask=counted, other=0).to(tl.int32)
                    weight = tl.load(coefficients + at, mask=counted, other=0)
                    if exponents is not None:
                        weight = _e4m3(weight.to(tl.int32), most)
                # Padding reads its atom, mostly atom 0, at weight 0: cheaper than a mask.
                weight = weight[:, None]
                atom = atoms + near + (index * M)[:, None]
                if EVEN:
                    a += weight * tl.load(atom, eviction_policy="evict_last").to(tl.float32)
                    b += weight * tl.load(atom + apart, eviction_policy="evict_last").to(tl.float32)
                else:
                    a += weight * tl.load(atom, mask=in_first, other=0.0).to(tl.float32)
                    b += weight * tl.load(atom + apart, mask=in_second, other=0.0).to(tl.float32)

        of_head = table * HEADS + head
        if exponents is not None:  # in two steps: 2^136 is no float32
            a *= _power_of_two(power >> 1)[:, None]
            b *= _power_of_two(power >> 1)[:, None]
            factor = _power_of_two(power - (power >> 1))
            if scale is not None:
                factor /= tl.load(scale + of_head)
            a *= factor[:, None]
            b *= factor[:, None]
        elif scale is not None:
            factor = 1.0 / tl.load(scale + of_head)
            a *= factor[:, None]
            b *= factor[:, None]
        if mean is not None:
            middle = mean + (of_head * M)[:, None] + (first + column)[None, :]
            a += tl.load(middle, mask=None if EVEN else in_first)
            b += tl.load(middle + apart, mask=None if EVEN else in_second)
        if cos is not None:
            turned = tl.load(tables + 2 * table_count + table) != 0
            if HALF:
                c, s = _angles(cos, sin, rope_scale, token, first + column, turned, PAIRS)
                a, b = a * c - b * s, b * c + a * s
            else:
                a = _turn_neighbours(a, first, cos, sin, rope_scale, token, turned, PAIRS, BR, W)
                b = _turn_neighbours(b, second, cos, sin, rope_scale, token, turned, PAIRS, BR, W)

        offset = tl.load(tables + table_count + table) + head.to(tl.int64) * stride_head
        if block_table is not None:
            place = (first_slot + token) // BLOCK_TOKENS
            slot = first_slot + token - place * BLOCK_TOKENS
            offset += tl.load(block_table + place).to(tl.int64) * stride_block
            offset += slot.to(tl.int64) * stride_token
        else:
            offset += token.to(tl.int64) * stride_token
        offset = tl.multiple_of(offset, ALIGN)
        _put(a, out, offset, first + column, stride_component, live, M, MOST, EVEN, UNIT, end)
        _put(
            b, out, offset, second + column, stride_component, live, M, MOST, EVEN, UNIT, second_end
        )
