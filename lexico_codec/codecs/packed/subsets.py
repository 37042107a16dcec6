"""Sets of numbers in as few bits as they can take: their rank among all sets of that size.

A set of n out of N numbers is one of C(N, n), so log2 C(N, n) bits name it, where the numbers one
by one would take n log2 N: the order, which means nothing, is not paid for. The rank is that of the
combinatorial number system: with c_1 < c_2 < ... < c_n it is Σ C(c_k, k), and the largest c_n with
C(c_n, n) <= rank is found first (Knuth, TAOCP 4A, 7.2.1.3, theorem L).

A rank has at most 126 bits here, two words. Where C(N, n) has more, the lowest bits of each number
are stored as they are and only the rest is ranked, as a multiset: b_k + k - 1 for the sorted rests
b_k, which ascend. Elias-Fano does the same with a unary code for the rests; a rank is smaller.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_RANK_BITS: Final = 126
"""Two words, and room for the sign and the carry."""

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SubsetCode:
    """How a set of n out of N numbers is written."""

    low_bits: int
    """Bits of each number that are stored as they are."""
    rank_bits: int
    """Bits of the rank of the rest."""
    ranks: int
    """Ranks that there are."""
    spread: bool
    """Whether the rests are a multiset: several numbers may share one."""

    def bits(self, n: int) -> int:
        """Bits of a set of n numbers."""
        return self.rank_bits + n * self.low_bits

    @property
    def is_whole(self) -> bool:
        """Whether every number is in the rank alone."""
        return self.low_bits == 0


@functools.cache
def subset_code(size: int, n: int) -> SubsetCode:
    """The shortest code of n out of `size` numbers; of equal ones that with the lower ranks.

    Raises:
        ValueError: more numbers than there are.
    """
    if not 0 <= n <= size:
        raise ValueError(f"no {n} out of {size}")
    codes = []
    for low_bits in range(size.bit_length()):
        rests = -(-size // (1 << low_bits))
        ranks = math.comb(rests + n - 1, n) if low_bits else math.comb(size, n)
        if (ranks - 1).bit_length() <= MAX_RANK_BITS:
            codes.append(SubsetCode(low_bits, (ranks - 1).bit_length(), ranks, low_bits > 0))
    return min(codes, key=lambda code: (code.bits(n), code.rank_bits))


@dataclass(frozen=True, slots=True)
class _Column:
    """C(c, k) for c = 0, 1, …, up to what two words hold."""

    k: int
    high: Words
    low: Words
    one_word: Words
    """Those that fit one word."""


@functools.cache
def _column(k: int, length: int) -> _Column:
    exact, value = [], 0
    for c in range(length):
        value = 0 if c < k else 1 if c == k else value * c // (c - k)
        if value.bit_length() > MAX_RANK_BITS + 1:
            break
        exact.append(value)
    low = np.array([value & (1 << 64) - 1 for value in exact], np.uint64)
    high = np.array([value >> 64 for value in exact], np.uint64)
    return _Column(k, high, low, low[: int((high == 0).sum())])


def rank(chosen: npt.NDArray[np.int64], counts: Counts, length: int) -> tuple[Words, Words]:
    """Ranks of ascending numbers, as a high and a low word each.

    Args:
        chosen: `[rows, width]`, below `length`; the first `counts[i]` of row i ascend strictly.
        counts: `[rows]`, 0..width.
        length: bound on the numbers, the same as for `unrank` or not.
    """
    high, low = np.zeros(len(chosen), np.uint64), np.zeros(len(chosen), np.uint64)
    for k in range(1, chosen.shape[1] + 1):
        column = _column(k, length)
        at = np.where(counts >= k, chosen[:, k - 1], 0)  # C(0, k) is 0
        low += column.low[at]
        high += column.high[at] + (low < column.low[at])
    return high, low


def unrank(
    high: Words, low: Words, counts: Counts, width: int, length: int
) -> npt.NDArray[np.int64]:
    """The numbers that `rank` was given, `[rows, width]`; 0 after a row's last.

    Args:
        high, low: `[rows]`, ranks below C(length, count).
        counts: `[rows]`, 0..width.
        width: columns of the result.
        length: bound on the numbers.
    """
    chosen = np.zeros((len(low), width), np.int64)
    for k in range(width, 0, -1):
        rows = slice(None) if int(counts.min(initial=k)) >= k else np.flatnonzero(counts >= k)
        found, rest_high, rest_low = _largest(high[rows], low[rows], _column(k, length))
        chosen[rows, k - 1] = found
        high[rows], low[rows] = rest_high, rest_low
    return chosen


def _largest(high: Words, low: Words, column: _Column) -> tuple[Counts, Words, Words]:
    """The last place of a column that is not above each rank, and what then is left of it."""
    if not high.any():
        few = column.one_word
        place = _guess(low.astype(np.float64), column.k, len(few))
        while True:
            after = np.minimum(place + 1, len(few) - 1)
            up, down = (few[after] <= low) & (after > place), few[place] > low
            if not (up.any() or down.any()):
                return place, high, low - few[place]
            place += up.astype(np.int64) - down
    about = high.astype(np.float64) * 2.0**64 + low.astype(np.float64)
    place = _guess(about, column.k, len(column.low))
    while True:
        after = np.minimum(place + 1, len(column.low) - 1)
        up = (after > place) & ~_above(column.high[after], column.low[after], high, low)
        down = _above(column.high[place], column.low[place], high, low)
        if not (up.any() or down.any()):
            taken = column.low[place]
            return place, high - column.high[place] - (low < taken), low - taken
        place += up.astype(np.int64) - down


def _guess(rank: npt.NDArray[np.float64], k: int, length: int) -> Counts:
    """About the c with C(c, k) = rank, below `length`; mostly exact, five times a search's speed.

    C(c, k) k! is a product of k numbers about c - (k - 1) / 2, whose geometric mean is less than
    that by about (k² - 1) / 24 of its inverse.
    """
    mean = (np.maximum(rank, 1) * float(math.factorial(k))) ** (1 / k)
    place = (mean + (k - 1) / 2 + (k * k - 1) / 24 / mean).astype(np.int64)
    return np.where(rank < 1, k - 1, place).clip(0, length - 1)


def _above(high: Words, low: Words, than_high: Words, than_low: Words) -> npt.NDArray[np.bool_]:
    above: npt.NDArray[np.bool_] = (high > than_high) | ((high == than_high) & (low > than_low))
    return above
