"""Pages out of slices of any shape, in any order."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.checksum import Checksum
from lexico_codec.limits import MAX_ASSEMBLY_BYTES, MAX_SLICES, MIN_ASSEMBLY_BYTES
from lexico_codec.pieces import Piece, Pieces
from lexico_codec.slices import Slice, SlicedPage, check_assembly
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput, ShapeMismatch
from tests.support.client_fixtures import small_spec
from tests.support.sliced_pages import bodies_of, grids, whole_page

SPEC: Final = small_spec("raw")
LAYERS, HEADS = range(SPEC.geometry.layers), range(SPEC.geometry.kv_heads)


def summed(pieces: list[Piece]) -> int:
    checksum = Checksum()
    for piece in pieces:
        checksum.add(piece.data)
    return checksum.value()


def joined(pieces: list[Piece]) -> bytes:
    return b"".join(piece.tobytes() for piece in pieces)


@given(data=st.data())
def test_slices_of_any_split_in_any_order_are_the_page(data: st.DataObject) -> None:
    held = data.draw(grids(len(LAYERS), len(HEADS)))
    page = whole_page(SPEC)
    order = data.draw(st.permutations(held + data.draw(st.lists(st.sampled_from(held)))))
    sliced, missing = SlicedPage(SPEC, 0), set(held)
    for each in order:
        assert not sliced.complete
        body = data.draw(in_pieces(bodies_of(SPEC, page, each)))
        assert sliced.add(each, summed(body), body) is (each in missing)
        missing.discard(each)
        if not missing:
            break
    assert sliced.complete
    assert joined(sliced.take()) == page.tobytes()
    assert sliced.empty


@st.composite
def in_pieces(draw: st.DrawFn, body: bytes) -> list[Piece]:
    """As they may come off the wire: cut anywhere, at odd addresses."""
    cuts = sorted(draw(st.sets(st.integers(1, len(body) - 1), max_size=3)))
    ends = [0, *cuts, len(body)]
    return [np.frombuffer(b"\0" + body[a:b], np.uint8)[1:] for a, b in pairwise(ends)]


def test_slices_of_all_heads_are_not_copied() -> None:
    page, sliced = whole_page(SPEC), SlicedPage(SPEC, 0)
    given = {}
    for layers in (range(2, 5), range(0, 2)):
        held = Slice(layers, HEADS)
        given[layers.start] = np.frombuffer(bodies_of(SPEC, page, held), np.uint8)
        sliced.add(held, layers.start, [given[layers.start]])
    first, second = sliced.take()
    assert first is given[0]
    assert second is given[2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Slice(LAYERS, range(0, 1)), "two different bodies of layers 0..4, KV heads 0..0"),
        (Slice(LAYERS, range(0, 2)), "overlap"),
        (Slice(range(4, 5), HEADS), "overlap"),
    ],
)
def test_slices_that_do_not_fit_each_other_are_refused(other: Slice, said: str) -> None:
    sliced = SlicedPage(SPEC, 7)
    sliced.add(Slice(LAYERS, range(0, 1)), 1, [])
    with pytest.raises(InvalidInput, match=f"page 7: .*{said}"):
        sliced.add(other, 2, [])


def test_a_page_comes_in_so_many_slices() -> None:
    from lexico_codec.geometry import Geometry

    sliced = SlicedPage(CacheSpec(bytes(32), Geometry(512, 1024, 8), SPEC.codec), 0)
    for at in range(MAX_SLICES):
        sliced.add(Slice(range(at % 512, at % 512 + 1), range(at // 512, at // 512 + 1)), 0, [])
    with pytest.raises(InvalidInput, match=str(MAX_SLICES)):
        sliced.add(Slice(range(512), range(1000, 1001)), 0, [])


def test_a_rank_holds_what_the_model_has() -> None:
    part = SPEC.held_by(range(1, 3), range(2, 3))
    assert Slice.of(part) == Slice(range(1, 3), range(2, 3))
    assert (part.geometry.layers, part.geometry.kv_heads) == (2, 1)
    assert part.whole == SPEC
    assert part.namespace == SPEC.namespace
    assert part.held_by(range(4, 5), HEADS).held_by(LAYERS, HEADS) == SPEC
    for layers, heads in (
        (range(4, 6), HEADS),
        (LAYERS, range(3, 4)),
        (range(0, 0), HEADS),
        (range(-1, 2), HEADS),
    ):
        with pytest.raises(ShapeMismatch):
            SPEC.held_by(layers, heads)


def test_slices_say_which_computation_they_are_of() -> None:
    check_assembly(SPEC, b"")
    check_assembly(SPEC, b"whatever")
    part = SPEC.held_by(LAYERS, range(0, 1))
    for length in (MIN_ASSEMBLY_BYTES, MAX_ASSEMBLY_BYTES):
        check_assembly(part, bytes(length))
    for length in (0, MIN_ASSEMBLY_BYTES - 1, MAX_ASSEMBLY_BYTES + 1):
        with pytest.raises(InvalidInput, match=f"there are {length} bytes"):
            check_assembly(part, bytes(length))


def test_pieces_of_a_page_are_read_by_encoders() -> None:
    """One run of bytes, whatever the slices were."""
    page, sliced = whole_page(SPEC), SlicedPage(SPEC, 0)
    for heads in (range(1, 3), range(0, 1)):
        held = Slice(LAYERS, heads)
        sliced.add(held, heads.start, [np.frombuffer(bodies_of(SPEC, page, held), np.uint8)])
    pieces = Pieces(sliced.take())
    start = SPEC.group_bytes(0)
    end = start + SPEC.group_bytes(1)
    assert bytes(pieces.cut(start, end)) == page.tobytes()[start:end]
