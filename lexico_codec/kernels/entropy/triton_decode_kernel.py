"""Triton function of the entropy decoder: a warp a block of 32 tokens, one token a lane."""

# Triton functions are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _take(words, at, end, which):
    """The next word of each lane of `which`, zeros past the end, and where reading goes on."""
    wanted = which.to(tl.int32)
    place = at + tl.cumsum(wanted, 0) - wanted
    word = tl.load(words + place, mask=which & (place < end), other=0)
    return word.to(tl.uint16, bitcast=True).to(tl.uint32), at + tl.sum(wanted, 0)


@triton.jit
def _renormalised(x, words, at, end, which):
    few = which & (x < 65536)
    word, at = _take(words, at, end, few)
    return tl.where(few, (x << 16) | word, x), at


RUNTIME = ("components", "stride", "last_class")
"""Numbers that launches of one model differ in: no reason to compile again."""


@triton.jit(do_not_specialize=RUNTIME)
def unpack(
    words,  # int16: all streams
    streams,  # [programs, 5] int64: first word, words, first token, tokens, row of classes
    classes,  # [rows, components] int32: twice the class, plus 1 where raw bits may follow
    offsets,  # [tokens] int8, or None
    slots,  # [E, 4096] int32
    shifts,  # [E] uint8
    values,  # [E, 32] float32
    out,  # [components, tokens], tokens side by side
    status,  # [programs] int32: 0 where the stream ends as it should
    components,
    stride,
    last_class,  # E - 1
    LANES: tl.constexpr,
):
    stream = streams + tl.program_id(0).to(tl.int64) * 5
    words += tl.load(stream)
    end = tl.load(stream + 1).to(tl.int32)
    token = tl.load(stream + 2)
    count = tl.load(stream + 3).to(tl.int32)
    classes += tl.load(stream + 4) * components
    lane = tl.arange(0, LANES)
    real = lane < count
    low_half = tl.load(words + 2 * lane, mask=real, other=0).to(tl.uint16, bitcast=True)
    high_half = tl.load(words + 2 * lane + 1, mask=real, other=0).to(tl.uint16, bitcast=True)
    x = (high_half.to(tl.uint32) << 16) | low_half.to(tl.uint32)  # [LANES]
    at = 2 * count
    offset = lane * 0
    if offsets is not None:
        offset = tl.load(offsets + token + lane, mask=real, other=-128).to(tl.int32)
    most = tl.max(offset, 0)
    to = out + token + lane
    for c in range(components):
        word = tl.load(classes + c)
        base = word >> 1
        value = tl.zeros([LANES], tl.float32)
        if base + most >= 0:
            e = tl.minimum(base + offset, last_class)
            live = real & (e >= 0)
            e = tl.maximum(e, 0)
            slot = tl.load(slots + ((e << 12) | (x & 4095).to(tl.int32)), mask=live, other=15)
            q = (slot & 31) - 15
            f = ((slot >> 5) & 4095).to(tl.uint32)
            x = tl.where(live, f * (x >> 12) + (slot >> 17).to(tl.uint32), x)
            x, at = _renormalised(x, words, at, end, live)

            k = lane * 0
            low = k
            if word & 1 != 0:
                k = tl.load(shifts + e, mask=live, other=0).to(tl.int32)
                low = x.to(tl.int32, bitcast=True) & ((1 << k) - 1)
                x, at = _renormalised(x >> k.to(tl.uint32), words, at, end, k > 0)

            escaped = q == 16
            if tl.max(escaped.to(tl.int32), 0) > 0:
                zigzag, at = _take(words, at, end, escaped)
                more, at = _take(words, at, end, zigzag > 0x7FFF)
                zigzag = ((zigzag & 0x7FFF) | (more << 15)).to(tl.int32, bitcast=True)
                # 31 bits at most: positive
                q = tl.where(escaped, (zigzag >> 1) ^ -(zigzag & 1), q)

            q = (q << k) | low
            own = live & (k == 0) & (q >= -15) & (q <= 15)
            value = tl.load(values + (e * 32 + q + 15), mask=own, other=0.0)
            value = tl.where(own, value, q.to(tl.float32))
        tl.store(to, value.to(out.dtype.element_ty), mask=real)
        to += stride
    wrong = tl.sum((real & (x != 65536)).to(tl.int32), 0) + (at != end).to(tl.int32)
    tl.store(status + tl.program_id(0), wrong)
