"""Interleaved rANS in numpy: oracle of the entropy coder, and the path without a compiler.

All lanes of all blocks at once, one component after another; the rules are those of `entropy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lexico_codec.kernels.entropy.tables import (
    BITS,
    ESCAPE,
    LANES,
    LEAST,
    LEVEL_LIMIT,
    MIDDLE,
    Tables,
)
from lexico_proto.errors import DamagedFrame, InvalidInput

Array = npt.NDArray[Any]


def encode(levels: Array, classes: Array, offsets: Array, tables: Tables) -> bytes:
    """See `entropy.encode`."""
    tokens = levels.shape[1]
    frequencies = tables.frequencies.numpy().astype(np.int64)  # [E, 32]
    starts = np.cumsum(frequencies, 1) - frequencies
    shifts = tables.shifts.numpy().astype(np.int64)
    offsets, real = _blocks(offsets), _blocks(np.ones(tokens, dtype=bool))
    x = np.full(real.shape, LEAST, dtype=np.int64)  # [blocks, 32]
    written = []  # (blocks, words) backwards

    def put(which: Array, words: Array) -> None:
        written.append((np.nonzero(which)[0], words[which]))

    for c in reversed(range(len(classes))):
        e = np.minimum(classes[c] + offsets, len(shifts) - 1)
        q, live = _blocks(levels[c].astype(np.int64)), real & (e >= 0)
        if (abs(q) > LEVEL_LIMIT).any() or q[~live].any():
            raise InvalidInput("levels: one is 2^30 or more, or is not 0 where nothing is coded")
        e = np.maximum(e, 0)
        k = shifts[e]
        high, low = q >> k, q & ((1 << k) - 1)
        plain = np.clip(high, -MIDDLE, MIDDLE) + MIDDLE
        escaped = live & ((abs(high) > MIDDLE) | (frequencies[e, plain] == 0))
        zigzag = np.where(high < 0, -2 * high - 1, 2 * high)
        long = escaped & (zigzag > 0x7FFF)
        put(long, zigzag >> 15)
        put(escaped, zigzag & 0x7FFF | long * 0x8000)

        raw = live & (k > 0)
        full = raw & (x >= 1 << (32 - k))
        put(full, x & 0xFFFF)
        x = np.where(full, x >> 16, x)
        x = np.where(raw, x << k | low, x)

        symbol = np.where(escaped, ESCAPE, plain)
        f = frequencies[e, symbol]
        full = live & (x >= f << 20)
        put(full, x & 0xFFFF)
        x = np.where(full, x >> 16, x)
        f = np.maximum(f, 1)  # of lanes that are not coded
        x = np.where(live, (x // f << BITS) + x % f + starts[e, symbol], x)
    return _joined(x, real, written[::-1])


def decode(
    body: Array, begins: Array, classes: Array, offsets: Array, tables: Tables, *, levels: bool
) -> Array:
    """See `entropy.decode`; `begins` `[blocks + 1]` is what `entropy.split` gives."""
    slots, values = tables.slots().numpy(), tables.values().numpy()
    shifts = tables.shifts.numpy().astype(np.int64)
    tokens = len(offsets)
    offsets, real = _blocks(offsets), _blocks(np.ones(tokens, dtype=bool))
    words = body.view("<u2").astype(np.int64)
    at, end = begins[:-1, None] // 2, begins[1:, None] // 2  # of words, [blocks, 1]

    def take(
        which: Array,
    ) -> Array:  # the next word of each lane that wants one, zeros past the end
        nonlocal at
        place = at + np.cumsum(which, 1) - which
        at = at + which.sum(1, keepdims=True)
        return np.where(which & (place < end), words[np.minimum(place, len(words) - 1)], 0)

    def renormalised(x: Array, which: Array) -> Array:
        few = which & (x < LEAST)
        return np.where(few, x << 16 | take(few), x)

    x = np.where(real, LEAST, 0)
    pair = at + 2 * np.arange(LANES)
    x[real] = (
        words[np.minimum(pair + 1, len(words) - 1)] << 16 | words[np.minimum(pair, len(words) - 1)]
    )[real]
    at = at + 2 * real.sum(1, keepdims=True)
    out = np.empty((len(classes), tokens), np.int32 if levels else np.float32)
    for c in range(len(classes)):
        e = np.minimum(classes[c] + offsets, len(shifts) - 1)
        live, e = real & (e >= 0), np.maximum(e, 0)
        slot = slots[e, x & 0xFFF].astype(np.int64)
        symbol = np.where(live, slot & 31, MIDDLE)
        x = renormalised(np.where(live, (slot >> 5 & 0xFFF) * (x >> BITS) + (slot >> 17), x), live)

        k = np.where(live, shifts[e], 0)
        low = x & ((1 << k) - 1)
        x = renormalised(x >> k, k > 0)

        escaped = symbol == ESCAPE
        zigzag = take(escaped)
        long = zigzag > 0x7FFF
        zigzag = zigzag & 0x7FFF | take(long) << 15
        high = np.where(escaped, np.where(zigzag & 1, ~(zigzag >> 1), zigzag >> 1), symbol - MIDDLE)

        q = (high << k | low).astype(np.int32)  # of a damaged body: whatever 32 bits hold
        if not levels:
            own = (k == 0) & (abs(high) <= MIDDLE)
            of = values[e, np.clip(high, -MIDDLE, MIDDLE) + MIDDLE]
            q = np.where(own & live, of, q.astype(np.float32))
        out[c] = q.reshape(-1)[:tokens]
    if (at != end).any() or (x[real] != LEAST).any():
        raise DamagedFrame("entropy coded block: does not end where it should")
    return out


def _blocks(lanes: Array) -> Array:
    """`[tokens]` as `[blocks, 32]`, zeros after the last."""
    padded = np.zeros(-(-len(lanes) // LANES) * LANES, lanes.dtype)
    padded[: len(lanes)] = lanes
    return padded.reshape(-1, LANES)


def _joined(states: Array, real: Array, read: list[tuple[Array, Array]]) -> bytes:
    """Lengths, then each block's states and words; `read` has words as they will be read."""
    blocks = np.concatenate([block for block, _ in read] or [np.zeros(0, np.int64)])
    words = np.concatenate([word for _, word in read] or [np.zeros(0, np.int64)])
    words = words[np.argsort(blocks, kind="stable")].astype("<u2")
    counts = np.bincount(blocks, minlength=len(states))
    ends = np.cumsum(counts)
    streams = [
        state[lanes].astype("<u4").tobytes() + words[end - count : end].tobytes()
        for state, lanes, end, count in zip(states, real, ends, counts, strict=True)
    ]
    return np.array([len(stream) for stream in streams], "<u4").tobytes() + b"".join(streams)
