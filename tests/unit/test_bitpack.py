"""Bits and ranks: what goes in comes out, in as few bits as there can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_codec.bitpack import MAX_WIDTH, pack, packed_bytes, padding_is_zero, unpack
from lexico_codec.codecs.packed.subsets import MAX_RANK_BITS, rank, subset_code, unrank

FIELDS = st.lists(
    st.integers(0, MAX_WIDTH).flatmap(
        lambda width: st.tuples(st.integers(0, (1 << width) - 1), st.just(width))
    ),
    max_size=60,
)
RANDOM = settings(max_examples=200, deadline=None)


@RANDOM
@given(FIELDS, st.binary(max_size=9))
def test_numbers_of_any_width(fields: list[tuple[int, int]], after: bytes) -> None:
    numbers = np.array([number for number, _ in fields], np.uint64)
    widths = np.array([width for _, width in fields], np.int64)
    run = pack(numbers, widths)
    whole, at = 0, 0  # the definition, one bit after another
    for number, width in fields:
        whole |= number << at
        at += width
    assert run == whole.to_bytes(packed_bytes(at), "little")
    assert padding_is_zero(memoryview(run), at)
    assert unpack(memoryview(run + after), widths).tolist() == numbers.tolist()


def test_padding() -> None:
    run = pack(np.array([3], np.uint64), np.array([3]))
    assert run == b"\x03"
    assert padding_is_zero(memoryview(b"\x07\xff"), 3)
    assert not padding_is_zero(memoryview(b"\x0b"), 3)
    assert padding_is_zero(memoryview(b""), 0)


def test_a_run_that_is_too_short_is_not_read_past_its_end() -> None:
    with pytest.raises(ValueError, match="buffer"):
        unpack(memoryview(b"\x01\x02"), np.array([17]))


def ranked(chosen: np.ndarray, counts: np.ndarray, length: int) -> list[int]:
    high, low = rank(chosen, counts, length)
    return [(int(h) << 64) + int(w) for h, w in zip(high, low, strict=True)]


@RANDOM
@given(data=st.data())
def test_ranks_of_any_sets(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 2, 63, 96, 1024, 16384]))
    most = min(size, 64)
    subsets = data.draw(
        st.lists(st.sets(st.integers(0, size - 1), max_size=most).map(sorted), max_size=9)
    )
    subsets = [
        s for s in subsets if sum(math.comb(c, k + 1) for k, c in enumerate(s)) < 1 << MAX_RANK_BITS
    ]
    counts = np.array([len(s) for s in subsets], np.int64)
    width = int(counts.max(initial=0))
    chosen = np.array([s + [0] * (width - len(s)) for s in subsets], np.int64)
    chosen = chosen.reshape(len(subsets), width)
    found = ranked(chosen, counts, size)
    assert found == [sum(math.comb(c, k + 1) for k, c in enumerate(s)) for s in subsets]
    high, low = rank(chosen, counts, size)
    assert (unrank(high, low, counts, width, size) == chosen).all()


@pytest.mark.parametrize(("size", "n"), [(7, 3), (12, 12), (9, 0), (30, 2)])
def test_every_rank_is_a_set(size: int, n: int) -> None:
    ranks = math.comb(size, n)
    counts = np.full(ranks, n)
    low = np.arange(ranks, dtype=np.uint64)
    chosen = unrank(np.zeros(ranks, np.uint64), low.copy(), counts, n, size)
    assert len({tuple(row) for row in chosen.tolist()}) == ranks
    assert bool((np.diff(chosen, axis=1) > 0).all())
    assert int(chosen.max(initial=0)) < size
    assert ranked(chosen, counts, size) == low.tolist()


@pytest.mark.parametrize(("size", "n"), [(1031, 16), (143, 40), (127, 64), (16384, 9)])
def test_the_largest_ranks_of_two_words(size: int, n: int) -> None:
    """Where doubles alone would find a neighbour: just below, at and above each binomial."""
    values = []
    for c in range(n, size):
        values += [math.comb(c, n) + d for d in (-1, 0, 1)]
    values = [v for v in values if v < min(math.comb(size, n), 1 << MAX_RANK_BITS)][-600:]
    high = np.array([v >> 64 for v in values], np.uint64)
    low = np.array([v & (1 << 64) - 1 for v in values], np.uint64)
    counts = np.full(len(values), n)
    chosen = unrank(high, low, counts, n, size)
    assert bool((np.diff(chosen, axis=1) > 0).all())
    assert ranked(chosen, counts, size) == values


@pytest.mark.parametrize("size", [1, 2, 96, 1024, 4096, 16384])
def test_codes_are_within_bits_of_the_least_possible(size: int) -> None:
    for n in range(min(size, 64) + 1):
        code = subset_code(size, n)
        bits, least = code.rank_bits + n * code.low_bits, math.log2(math.comb(size, n))
        assert code.rank_bits <= MAX_RANK_BITS
        assert code.ranks <= 1 << code.rank_bits
        assert least <= bits + 1e-9
        plain = n * (size - 1).bit_length()
        elias_fano = min(n * low + n + (size >> low) for low in range(size.bit_length()))
        assert bits <= min(plain, elias_fano)
        if n <= 16:
            assert bits < least + 1.3
    with pytest.raises(ValueError, match="out of"):
        subset_code(size, size + 1)
