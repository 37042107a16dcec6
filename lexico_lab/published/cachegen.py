"""CacheGen (arXiv 2310.07240)-like: deltas to an anchor token, coarser with depth, entropy coded.

As the paper describes it, to our memory (its text was not at hand): tokens in groups of ten; the
first of a group, the anchor, in 8 bits with one scale a vector; of the others the difference from
the anchor, quantised with bins that grow from the first third of the layers over the second to the
last (0.5 : 1 : 1.5); arithmetic coding with a distribution for every layer and channel, learned
from other text and shared. Keys are coded as they lie in the cache, after RoPE. Here the
arithmetic coder is an interleaved rANS (Duda, arXiv 1311.2540; 14-bit frequencies), which meets
the same entropy.

Unknown to us, and chosen: the unit of the bins (here the root mean square of a layer's deltas in
training text, keys and values apart; the public code scales by a vector's largest value and takes
no deltas); whether deltas are taken from the anchor before or after its quantisation (after, so
that its error does not add up); the tail of the alphabet (codes beyond 127 are an escape and 2
bytes); how thin counts are smoothed (by the layer's pooled counts). The paper's streaming, which
chooses a level per chunk of tokens, is no matter of storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored

Floats = NDArray[np.float32]
Symbols = NDArray[np.int64]

SCALES: Final = (0.2, 0.3, 0.5, 0.8, 1.3, 2.2)
"""What the bins are multiplied by."""

_GROUP: Final = 10
_BINS: Final = (0.5, 1.0, 1.5)
_LARGEST: Final = 127
"""Largest code that has a symbol; the symbol after it says that the code lies in a list."""
_ALPHABET: Final = 2 * _LARGEST + 2
_PRECISION: Final = 14
"""Bits of a frequency."""
_PRIOR: Final = 16.0
"""Weight of the layer's pooled distribution in a channel's, in counts."""
_LANES: Final = 512
"""rANS states that run side by side; each costs 4 bytes."""
_LOW: Final = 1 << 16
"""Least value of a state between symbols."""


def coders() -> list[Coder]:
    """A coder for every scale of the bins."""
    return [CacheGen(scale) for scale in SCALES]


class CacheGen(Coder):
    """CacheGen at one level."""

    learns = 12

    def __init__(self, scale: float) -> None:
        """Args:
        scale: of the bins, which are in units of the deltas' root mean square.
        """
        self.name = f"CacheGen bins x{scale:g}"
        self.scale = scale
        self._steps: Floats | None = None
        self._anchors: Tables | None = None
        self._deltas: Tables | None = None

    def calibrate(self, training: Sequence[Prefix]) -> Self:
        square, count = np.zeros(2 * training[0].keys.shape[0]), 0
        for prefix in training:
            rows = _rows(prefix)
            deltas = rows - rows[_anchor_of(len(rows))]
            square += np.square(deltas).mean(axis=2).sum(axis=0)
            count += int((~_is_anchor(len(rows))).sum())
        third = np.arange(len(square) // 2) * len(_BINS) // (len(square) // 2)
        bins = np.tile(np.asarray(_BINS)[third], 2)
        rms = np.sqrt(square / max(count, 1)).clip(1e-6)
        self._steps = (self.scale * bins * rms).astype(np.float32)  # [2 * layers]
        width = training[0].keys.shape[2] * training[0].keys.shape[3]
        counts = [np.zeros(len(square) * width * _ALPHABET, np.int64) for _ in range(2)]
        for prefix in training:
            anchors, _, codes = _quantise(_rows(prefix), self._steps)
            for part, counted in zip((anchors, codes), counts, strict=True):
                symbols, _ = to_symbols(_flat(part))
                places = symbols + np.arange(symbols.shape[1]) * _ALPHABET
                counted += np.bincount(places.reshape(-1), minlength=counted.size)
        self._anchors, self._deltas = (
            Tables.of(counted.reshape(-1, _ALPHABET), width) for counted in counts
        )
        return self

    def code(self, prefix: Prefix) -> Stored:
        if self._steps is None or self._anchors is None or self._deltas is None:
            raise RuntimeError("calibrate first")
        rows = _rows(prefix)
        anchors, scales, deltas = _quantise(rows, self._steps)
        size = 2 * scales.size
        for codes, tables in ((anchors, self._anchors), (deltas, self._deltas)):
            symbols, escapes = to_symbols(_flat(codes))
            size += len(encode(symbols, tables)) + 4 + escapes.nbytes
        keys, values = _layers(_dequantise(anchors, scales, deltas, self._steps), prefix.keys.shape)
        return Stored(keys, values, size)


@dataclass(frozen=True, eq=False)
class Tables:
    """Static distributions of a stream, one for each context (layer and channel)."""

    frequencies: NDArray[np.uint32]
    """`[contexts, alphabet]`, at least 1, adding up to 2^14 a context."""
    starts: NDArray[np.uint32]
    """`[contexts, alphabet]`: sum of the frequencies before."""

    @classmethod
    def of(cls, counts: NDArray[np.int64], width: int) -> Self:
        """Tables from counts `[contexts, alphabet]`; `width` contexts of a layer are neighbours."""
        pooled = counts.reshape(-1, width, counts.shape[1]).sum(axis=1) + 1e-3
        prior = np.repeat(pooled / pooled.sum(axis=1, keepdims=True), width, axis=0)
        mixed = counts + _PRIOR * prior
        shares = mixed / mixed.sum(axis=1, keepdims=True)
        total = 1 << _PRECISION
        frequencies = 1 + np.floor(shares * (total - counts.shape[1])).astype(np.int64)
        most = frequencies.argmax(axis=1)
        frequencies[np.arange(len(counts)), most] += total - frequencies.sum(axis=1)
        starts = frequencies.cumsum(axis=1) - frequencies
        return cls(frequencies.astype(np.uint32), starts.astype(np.uint32))


def to_symbols(codes: NDArray[np.int32]) -> tuple[Symbols, NDArray[np.int16]]:
    """Symbols of codes, and the codes that have none, in order."""
    outside = np.abs(codes) > _LARGEST
    symbols = np.where(outside, _ALPHABET - 1, codes + _LARGEST).astype(np.int64)
    return symbols, codes[outside].clip(-(1 << 15), (1 << 15) - 1).astype(np.int16)


def from_symbols(symbols: Symbols, escapes: NDArray[np.int16]) -> NDArray[np.int32]:
    """Inverse of `to_symbols`."""
    codes = (symbols - _LARGEST).astype(np.int32)
    codes[symbols == _ALPHABET - 1] = escapes
    return codes


def encode(symbols: Symbols, tables: Tables) -> bytes:
    """Symbols `[rows, contexts]` by interleaved rANS: the states, then 16-bit words.

    Symbol i goes to lane i mod lanes. The last symbols are coded first, so that the decoder reads
    forward.
    """
    contexts = np.arange(symbols.shape[1])
    frequencies = tables.frequencies[contexts, symbols].reshape(-1).astype(np.uint64)
    starts = tables.starts[contexts, symbols].reshape(-1).astype(np.uint64)
    limits = frequencies << np.uint64(32 - _PRECISION)
    precision, half = np.uint64(_PRECISION), np.uint64(16)
    states = np.full(_LANES, _LOW, np.uint64)
    words: list[NDArray[np.uint16]] = []
    for at in range((symbols.size - 1) // _LANES * _LANES, -1, -_LANES):
        f, start = frequencies[at : at + _LANES], starts[at : at + _LANES]
        x = states[: len(f)]
        full = x >= limits[at : at + _LANES]
        words.append(x[full].astype(np.uint16))
        x = np.where(full, x >> half, x)
        whole = x // f
        states[: len(f)] = (whole << precision) + (x - whole * f) + start
    return states.astype("<u4").tobytes() + b"".join(w.astype("<u2").tobytes() for w in words[::-1])


def decode(payload: bytes, rows: int, tables: Tables) -> Symbols:
    """Inverse of `encode`."""
    contexts = len(tables.frequencies)
    states = np.frombuffer(payload, "<u4", _LANES).astype(np.uint64)
    words = np.frombuffer(payload, "<u2", offset=4 * _LANES).astype(np.uint64)
    found = np.zeros(rows * contexts, np.int64)
    read = 0
    for at in range(0, found.size, _LANES):
        lanes = min(_LANES, found.size - at)
        context = np.arange(at, at + lanes) % contexts
        x = states[:lanes]
        slots = (x & np.uint64((1 << _PRECISION) - 1)).astype(np.int64)
        symbols = np.zeros(lanes, np.int64)  # the last symbol that starts at the slot or before
        for bit in (1 << b for b in reversed(range((_ALPHABET - 1).bit_length()))):
            ahead = np.minimum(symbols + bit, _ALPHABET - 1)
            symbols = np.where(tables.starts[context, ahead] <= slots, ahead, symbols)
        f = tables.frequencies[context, symbols].astype(np.uint64)
        rest = (slots - tables.starts[context, symbols]).astype(np.uint64)
        x = f * (x >> np.uint64(_PRECISION)) + rest
        empty = x < np.uint64(_LOW)
        taken = int(empty.sum())
        x[empty] = (x[empty] << np.uint64(16)) | words[read : read + taken]
        read += taken
        states[:lanes] = x
        found[at : at + lanes] = symbols
    return found.reshape(rows, contexts)


def _quantise(
    rows: Floats, steps: Floats
) -> tuple[NDArray[np.int32], NDArray[np.float16], NDArray[np.int32]]:
    """Codes of the anchors, their scales, and codes of the deltas, of `[tokens, 2 layers, width]`.

    Deltas are taken from the anchors as the reader sees them.
    """
    exact = rows[::_GROUP]
    scales = (np.abs(exact).max(axis=2) / _LARGEST).astype(np.float16)
    safe = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)[..., None]
    anchors = np.rint(exact / safe).clip(-_LARGEST, _LARGEST).astype(np.int32)
    seen = anchors * scales.astype(np.float32)[..., None]
    others = ~_is_anchor(len(rows))
    deltas = rows[others] - seen[(np.arange(len(rows)) // _GROUP)[others]]
    codes = np.rint(deltas / steps[:, None]).clip(-(1 << 15), (1 << 15) - 1)
    return anchors, scales, codes.astype(np.int32)


def _flat(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """`[tokens, contexts]` from `[tokens, 2 layers, width]`, tokens or none."""
    return codes.reshape(len(codes), codes.shape[1] * codes.shape[2])


def _dequantise(
    anchors: NDArray[np.int32],
    scales: NDArray[np.float16],
    deltas: NDArray[np.int32],
    steps: Floats,
) -> Floats:
    """Inverse of `_quantise`, to what the codes hold."""
    seen = anchors * scales.astype(np.float32)[..., None]
    tokens = len(anchors) + len(deltas)
    rows: Floats = seen[np.arange(tokens) // _GROUP].astype(np.float32)
    rows[~_is_anchor(tokens)] += deltas * steps[:, None]
    return rows


def _is_anchor(tokens: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.arange(tokens) % _GROUP == 0
    return found


def _anchor_of(tokens: int) -> NDArray[np.int64]:
    return np.arange(tokens) // _GROUP * _GROUP


def _rows(prefix: Prefix) -> Floats:
    """`[tokens, 2 * layers, kv_heads * head_dim]`: layers of keys, then of values."""
    both = torch.cat([prefix.keys, prefix.values]).flatten(2)
    rows: Floats = both.transpose(0, 1).contiguous().numpy()
    return rows


def _layers(rows: Floats, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Keys and values, `[layers, tokens, kv_heads, head_dim]`, from rows as `_rows` gives them."""
    layers, tokens, heads, head_dim = shape
    both = torch.from_numpy(rows).transpose(0, 1).reshape(2 * layers, tokens, heads, head_dim)
    return both[:layers].contiguous(), both[layers:].contiguous()
