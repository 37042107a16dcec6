"""Sparse codes as bytes, as small as they get: what codec lexico-packed writes after the sinks.

A header of four bytes a table (least count, least scale, the bits that counts and scales of its
vectors take above them, the bits of its coefficients), then five runs of bits, each from a whole
byte on: counts, scales, ranks of the sets of atoms (`subsets`), the bits of indices that are not in
the ranks, coefficients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lexico_codec.bitpack import pack, packed_bytes, padding_is_zero, unpack
from lexico_codec.codecs.packed.coefficients import (
    LEAST_BITS,
    MOST_BITS,
    Quantised,
    scales_of,
    sizes_of,
)
from lexico_codec.codecs.packed.subsets import rank, subset_code, unrank
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_proto.errors import DamagedFrame

Number = TypeVar("Number", np.int32, np.float32)
Rows = npt.NDArray[np.int64]
"""Numbers of vectors."""

MOST_ATOMS: Final = 64
"""Of one vector."""
TABLE_BYTES: Final = 4
"""Of the header."""


def write(codes: Quantised, sizes: Sequence[int]) -> bytes:
    """What follows the sinks.

    Args:
        codes: of the vectors of every table.
        sizes: atoms in the dictionary of each table.
    """
    tables = len(sizes)
    rows = len(codes.counts) // tables
    amount = codes.counts.view(tables, rows).numpy()
    scale = codes.scales.view(tables, rows).numpy()
    blank = amount == 0  # a vector without atoms has no scale: let it not widen the others'
    least = np.where(blank, 255, scale).min(axis=1, initial=255)
    least = np.where(blank.all(axis=1), 0, least)
    scale = np.where(blank, least[:, None], scale)
    floors = amount.min(axis=1, initial=MOST_ATOMS) if rows else np.zeros(tables, int)
    widths = [_bit_lengths(part, low) for part, low in ((amount, floors), (scale, least))]
    bits = codes.bits.numpy()
    header = np.stack([floors, least, widths[0] | widths[1] << 4, bits], axis=1).astype(np.uint8)
    runs = [
        pack((part - low[:, None]).ravel().astype(np.uint64), np.repeat(width, rows))
        for part, low, width in ((amount, floors, widths[0]), (scale, least, widths[1]))
    ]
    plan = _Plan.of(sizes, amount)
    used = np.arange(codes.indices.shape[1]) < amount.reshape(-1, 1)
    chosen = np.where(used, codes.indices.numpy(), 0)
    high, low = rank(plan.spread_out(chosen >> plan.low_bits[:, None]), plan.counts, plan.length)
    runs.append(pack(_pieces(high, low, plan.pieces), plan.rank_widths().ravel()))
    atoms = chosen[used].astype(np.uint64)
    low_widths = np.repeat(plan.low_bits, plan.counts)
    runs.append(pack(atoms & _masks(low_widths), low_widths))
    levels = codes.levels.numpy()[used].astype(np.uint64)
    runs.append(pack(levels, np.repeat(np.repeat(bits, rows), plan.counts)))
    return b"".join([header.tobytes(), *runs])


def rows_of(tables: range, heads: range, sizes: tuple[int, int, int]) -> Rows | None:
    """Numbers of the vectors of some tables and heads, ascending; None for all.

    Args:
        tables, heads: consecutive.
        sizes: tables, tokens and heads that there are.
    """
    if (len(tables), len(heads)) == (sizes[0], sizes[2]):
        return None
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers[tables.start : tables.stop, :, heads.start : heads.stop].ravel()


def read(
    body: memoryview,
    sizes: Sequence[int],
    limits: Sequence[int],
    rows: int,
    wanted: Rows | None = None,
) -> Codes:
    """Plain codes of vectors, every length checked before it is used.

    Args:
        body: what follows the sinks.
        sizes: atoms in the dictionary of each table.
        limits: most atoms of a vector of each table.
        rows: vectors a table.
        wanted: numbers of the vectors to read, among `tables * rows`; None for all. Of the others
            only what tells lengths is looked at.

    Returns:
        Codes of those vectors, in the CPU's memory.
    """
    tables = len(sizes)
    if len(body) < TABLE_BYTES * tables:
        raise DamagedFrame(f"packed body of {len(body)} bytes for {tables} tables")
    header = np.frombuffer(body, np.uint8, TABLE_BYTES * tables).reshape(tables, 4).astype(int)
    runs = _Runs(body[TABLE_BYTES * tables :])
    widths = [header[:, 2] & 15, header[:, 2] >> 4]
    if max(int(width.max()) for width in widths) > 8:
        raise DamagedFrame("packed header with counts or scales of more than 8 bits")
    if not bool(((header[:, 3] >= LEAST_BITS) & (header[:, 3] <= MOST_BITS)).all()):
        raise DamagedFrame("packed header with coefficients of other than 2 to 8 bits")
    amount, scale = (
        header[:, [i]] + runs.take(np.repeat(widths[i], rows)).astype(int).reshape(tables, rows)
        for i in (0, 1)
    )
    if bool((amount.max(axis=1, initial=0) > np.array(limits)).any()):
        raise DamagedFrame("packed vector with more atoms than its table has")
    if int(scale.max(initial=0)) > 255:
        raise DamagedFrame("packed scale over 255")
    plan, table_bits = _Plan.of(sizes, amount), np.repeat(header[:, 3], rows)
    low_widths = np.repeat(plan.low_bits, plan.counts)
    bits = np.repeat(table_bits, plan.counts)
    rank_widths = plan.rank_widths()
    runs.expect(rank_widths.sum(), low_widths.sum(), bits.sum())
    pieces = runs.take(rank_widths.ravel()).reshape(rank_widths.shape)
    low_bits = runs.take(low_widths).astype(np.int64)
    level = runs.take(bits).astype(np.int64)
    scale, most = scale.ravel(), np.repeat(np.array(sizes), rows)
    if wanted is not None:
        here = np.zeros(len(plan.counts), np.bool_)
        here[wanted] = True
        atoms = np.repeat(here, plan.counts)
        low_widths, low_bits, level, bits = (
            column[atoms] for column in (low_widths, low_bits, level, bits)
        )
        plan, pieces = plan.only(wanted), pieces[wanted]
        scale, most = scale[wanted], most[wanted]
    high, low = _words(pieces)
    if plan.is_beyond(high, low):
        raise DamagedFrame("packed rank beyond the sets that there are")
    width = int(plan.counts.max(initial=0))
    chosen = plan.close_up(unrank(high, low, plan.counts, width, plan.length))
    used = None  # every vector has as many atoms: the usual case without a tolerance
    if int(plan.counts.min(initial=width)) < width:
        used = np.arange(width) < plan.counts[:, None]
    upper = chosen.ravel() if used is None else chosen[used]
    indices = _rectangle(((upper << low_widths) + low_bits).astype(np.int32), used, chosen.shape)
    if bool((indices.max(axis=1, initial=0) >= most).any()):
        raise DamagedFrame("packed index beyond a dictionary")
    value = _values()[bits, level]
    scales = scales_of(torch.device("cpu")).numpy()[scale]
    value *= np.repeat(scales, plan.counts)
    coefficients = _rectangle(value, used, chosen.shape)
    counts = torch.from_numpy(plan.counts.astype(np.int32))
    return Codes(torch.from_numpy(indices), torch.from_numpy(coefficients), counts)


def _rectangle(
    numbers: npt.NDArray[Number], used: npt.NDArray[np.bool_] | None, shape: tuple[int, ...]
) -> npt.NDArray[Number]:
    """Numbers of all atoms where `used` is set, 0 elsewhere; None is set everywhere."""
    if used is None:
        return numbers.reshape(shape)
    rectangle = np.zeros(shape, numbers.dtype)
    rectangle[used] = numbers
    return rectangle


@functools.cache
def _values() -> npt.NDArray[np.float32]:
    """Coefficients in units of their scale, by bits and level: `[9, 256]`."""
    values = np.zeros((MOST_BITS + 1, 1 << MOST_BITS), np.float32)
    for bits in range(LEAST_BITS, MOST_BITS + 1):
        sizes = sizes_of(bits, torch.device("cpu")).numpy()
        values[bits, : 1 << bits] = np.stack([sizes, -sizes], axis=1).ravel()
    return values


class _Runs:
    """Runs of bits one after another, each from a whole byte on."""

    def __init__(self, body: memoryview) -> None:
        self._body = body

    def take(self, widths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """The numbers of the next run."""
        bits = int(widths.sum())
        size = packed_bytes(bits)
        if len(self._body) < size:
            raise DamagedFrame(f"packed body ends {size - len(self._body)} bytes early")
        if not padding_is_zero(self._body, bits):
            raise DamagedFrame("packed run whose last bits are not zero")
        numbers = unpack(self._body, widths)
        self._body = self._body[size:]
        return numbers

    def expect(self, *bits: int) -> None:
        """Refuses a body in which these runs are not all that is left."""
        size = sum(packed_bytes(int(run)) for run in bits)
        if len(self._body) != size:
            raise DamagedFrame(f"packed codes of {len(self._body)} bytes, counts say {size}")


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the atoms of every vector are written; it follows from dictionaries and counts."""

    counts: npt.NDArray[np.int64]
    """`[B]` atoms."""
    low_bits: npt.NDArray[np.int64]
    """`[B]` bits of an index apart from the rank."""
    rank_bits: npt.NDArray[np.int64]
    """`[B]`."""
    limits: npt.NDArray[np.uint64]
    """`[B, 2]` high and low word of the number of ranks."""
    length: int
    """Bound on what is ranked."""

    @classmethod
    def of(cls, sizes: Sequence[int], amount: npt.NDArray[np.int64]) -> _Plan:
        counts = amount.ravel().astype(np.int64)
        most = int(counts.max(initial=0))
        kinds = sorted(set(sizes))
        fields = np.stack([_fields(size, most) for size in kinds])  # [kinds, most + 1, 4]
        kind = np.repeat([kinds.index(size) for size in sizes], amount.shape[1])
        of_each = fields[kind, counts]
        length = max(_length(size, n) for size in kinds for n in range(min(most, size) + 1))
        bits = of_each[:, :2].astype(np.int64)
        return cls(counts, bits[:, 0], bits[:, 1], of_each[:, 2:], length)

    def only(self, rows: Rows) -> _Plan:
        """The plan of some vectors."""
        return _Plan(
            self.counts[rows],
            self.low_bits[rows],
            self.rank_bits[rows],
            self.limits[rows],
            self.length,
        )

    @property
    def pieces(self) -> int:
        """Numbers of 32 bits that the longest rank takes."""
        return (int(self.rank_bits.max(initial=0)) + 31) // 32

    def rank_widths(self) -> npt.NDArray[np.int64]:
        """`[B, pieces]` bits of each piece of each rank."""
        widths: npt.NDArray[np.int64] = self.rank_bits[:, None] - 32 * np.arange(self.pieces)
        return widths.clip(0, 32)

    def spread_out(self, rests: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A multiset as a set: 0, 1, 2, … are added where indices have low bits apart."""
        added = np.where(self.low_bits[:, None] > 0, np.arange(rests.shape[1]), 0)
        chosen: npt.NDArray[np.int64] = rests + added
        return chosen

    def close_up(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The inverse of `spread_out`."""
        added = np.where(self.low_bits[:, None] > 0, np.arange(chosen.shape[1]), 0)
        rests: npt.NDArray[np.int64] = chosen - added
        return rests

    def is_beyond(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> bool:
        """Whether a rank is none."""
        limit_high, limit_low = self.limits[:, 0], self.limits[:, 1]
        return bool(((high > limit_high) | ((high == limit_high) & (low >= limit_low))).any())


@functools.lru_cache(1024)
def _fields(size: int, most: int) -> npt.NDArray[np.uint64]:
    """Low bits, rank bits and the two words of the number of ranks, for 0..most atoms."""
    codes = [subset_code(size, n) for n in range(min(most, size) + 1)]
    words = [[c.low_bits, c.rank_bits, c.ranks >> 64, c.ranks & (1 << 64) - 1] for c in codes]
    words += [[0, 0, 0, 0]] * (most + 1 - len(words))
    return np.array(words, np.uint64)


@functools.cache
def _length(size: int, n: int) -> int:
    """Bound on what is ranked of n out of `size` atoms."""
    code = subset_code(size, n)
    return size if code.is_whole else (size - 1 >> code.low_bits) + n


def _bit_lengths(
    part: npt.NDArray[np.int64], floors: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Bits that the rows of a table need above its floor, `[tables]`."""
    most = (part - floors[:, None]).max(axis=1, initial=0)
    return np.array([int(number).bit_length() for number in most], np.int64)


def _masks(widths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    masks: npt.NDArray[np.uint64] = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    return masks


def _pieces(
    high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64], pieces: int
) -> npt.NDArray[np.uint64]:
    """Two words as numbers of 32 bits, the least first, flat."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    return np.stack([low & mask, low >> half, high & mask, high >> half], axis=1)[
        :, :pieces
    ].ravel()


def _words(
    pieces: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The inverse of `_pieces`: high and low words."""
    four = np.zeros((len(pieces), 4), np.uint64)
    four[:, : pieces.shape[1]] = pieces
    half = np.uint64(32)
    return four[:, 2] | four[:, 3] << half, four[:, 0] | four[:, 1] << half
