"""A page in pieces is read as the same bytes in one run."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.checksum import Checksum
from lexico_codec.pieces import Pieces
from lexico_codec.upload import PageAssembler
from lexico_proto import errors
from lexico_proto.limits import PIECE_BYTES

SMALL = PIECE_BYTES // 16


@given(parts=st.lists(st.binary(max_size=9), max_size=12), data=st.data())
def test_any_cut_of_any_pieces(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    pieces = Pieces([np.frombuffer(part, np.uint8) for part in parts])
    assert len(pieces) == len(whole)
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        end = data.draw(st.integers(start + 1, len(whole)))
        assert pieces.cut(start, end) == whole[start:end]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 1), (0, 7), (6, 7)])
def test_bytes_that_are_not_there(start: int, end: int) -> None:
    with pytest.raises(errors.InvalidInput):
        Pieces([np.zeros(6, np.uint8)]).cut(start, end)


def test_pieces_without_a_gap_are_not_copied() -> None:
    block = np.arange(100, dtype=np.uint8)
    pieces = Pieces([block[:10], block[10:11], block[11:70], block[70:]])
    view = np.asarray(pieces.cut(3, 90))
    assert np.shares_memory(view, block)
    expected = block[3:90].copy()
    del block, pieces
    gc.collect()
    assert np.array_equal(view, expected)  # the view keeps what it needs


def test_pieces_with_a_gap_or_out_of_order_are_copied() -> None:
    block = np.arange(100, dtype=np.uint8)
    for parts in ([block[:10], block[11:]], [block[50:], block[:50]]):
        cut = Pieces(parts).cut(0, sum(map(len, parts)))
        assert bytes(cut) == b"".join(part.tobytes() for part in parts)
        assert not np.shares_memory(np.asarray(cut), block)


def assembled(parts: list[bytes]) -> list[bytes]:
    checksum = Checksum()
    assembler = PageAssembler(0, sum(map(len, parts)))
    for part in parts:
        assembler.add(memoryview(part))
        checksum.add(part)
    return [piece.tobytes() for piece in assembler.end(0, checksum.value())]


def test_large_pieces_stay_and_small_ones_are_put_together() -> None:
    large, small = bytes(SMALL), bytes(range(200))
    assert assembled([large, large]) == [large, large]
    assert assembled([small] * 5) == [small * 5]
    assert assembled([large, small, small, large, small]) == [large, small * 2, large, small]


@given(st.lists(st.sampled_from([1, 7, SMALL - 1, SMALL, SMALL + 1]), min_size=1, max_size=20))
def test_no_page_takes_many_objects(sizes: list[int]) -> None:
    parts = [bytes([i]) * size for i, size in enumerate(sizes)]
    pieces = assembled(parts)
    assert b"".join(pieces) == b"".join(parts)
    assert len(pieces) <= 2 * sum(sizes) // SMALL + 1
