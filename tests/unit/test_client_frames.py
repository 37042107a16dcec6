"""The stream of a Get, attacked."""

from itertools import pairwise

import pytest

from lexico_client._frames import Frame, FrameAssembler, longest_frame
from lexico_codec.frame import HEADER_BYTES
from lexico_codec.limits import MAX_PARSED_FRAME_BYTES
from lexico_proto.errors import InternalError
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import small_spec

SPEC = small_spec()
BODY = bytes(range(200)) + bytes(40)


def piece(
    page: int, group: int, data: bytes = BODY, frame_bytes: int | None = None
) -> reload.GetResponse:
    length = len(data) if frame_bytes is None else frame_bytes
    part = reload.FramePart(page=page, group=group, frame_bytes=length, data=data)
    return reload.GetResponse(frame=part)


def miss(page: int) -> reload.GetResponse:
    return reload.GetResponse(miss=reload.Miss(page=page))


def order(messages: list[reload.GetResponse], pages: int = 3) -> list[tuple[int, int]]:
    assembler = FrameAssembler(SPEC, pages)
    frames = [assembler.accept(message) for message in messages]
    assert assembler.complete
    return [(frame.page, frame.group) for frame in frames if frame is not None]


def test_frames_in_order() -> None:
    places = [(page, group) for group in range(3) for page in range(3)]
    assert order([piece(*place) for place in places]) == places


@pytest.mark.parametrize("cuts", [[0, 1, 240], [0, 100, 101, 240], [0, 240]])
def test_pieces_of_any_size_make_the_frame(cuts: list[int]) -> None:
    assembler = FrameAssembler(SPEC, 1)
    parts = [piece(0, 0, BODY[a:b], 240) for a, b in pairwise(cuts)]
    *none, frame = [assembler.accept(part) for part in parts]
    assert none == [None] * len(none)
    assert frame == Frame(0, 0, bytearray(BODY))


@pytest.mark.parametrize(
    ("messages", "places"),
    [
        ([miss(0)], []),
        ([piece(0, 0), miss(1), piece(0, 1), piece(0, 2)], [(0, 0), (0, 1), (0, 2)]),
        ([piece(0, 0), piece(1, 0), piece(2, 0), miss(1), piece(0, 1), piece(0, 2)], None),
        ([piece(0, 0), piece(1, 0), miss(1), piece(0, 1), miss(0)], None),
    ],
    ids=["at-once", "in-the-first-group", "in-the-second-group", "twice"],
)
def test_a_miss_ends_the_pages(
    messages: list[reload.GetResponse], places: list[tuple[int, int]] | None
) -> None:
    seen = order(messages)
    assert places is None or seen == places


LONGEST = longest_frame(SPEC, 0)


@pytest.mark.parametrize(
    "messages",
    [
        [reload.GetResponse()],
        [piece(1, 0)],
        [piece(0, 1)],
        [piece(0, 0), piece(0, 0)],
        [piece(0, 0), piece(2, 0)],
        [piece(3, 0)],
        [miss(3)],
        [piece(0, 0, BODY[:9], 240), miss(2)],
        [piece(0, 0, BODY[:9], 240), piece(1, 0)],
        [piece(0, 0, BODY[:9], 240), piece(0, 0, BODY[9:], 241)],
        [piece(0, 0, BODY[:9], 240), piece(0, 0, BODY)],
        [piece(0, 0, b"", 240)],
        [piece(0, 0, BODY, 239)],
        [piece(0, 0, BODY, 0)],
        [piece(0, 0, BODY, HEADER_BYTES - 1)],
        [piece(0, 0, BODY, LONGEST + 1)],
        [piece(0, 0, BODY, 1 << 60)],
        [miss(0), miss(0)],
    ],
    ids=[
        "empty",
        "page-early",
        "group-early",
        "twice",
        "page-skipped",
        "page-unknown",
        "miss-unknown",
        "miss-inside-a-frame",
        "frame-inside-a-frame",
        "length-changes",
        "more-than-the-length",
        "piece-empty",
        "longer-than-announced",
        "zero",
        "shorter-than-a-header",
        "too-long",
        "huge",
        "after-the-end",
    ],
)
def test_a_stream_that_breaks_the_protocol(messages: list[reload.GetResponse]) -> None:
    assembler = FrameAssembler(SPEC, 3)
    for message in messages[:-1]:
        assembler.accept(message)
    with pytest.raises(InternalError, match=r"^get: "):
        assembler.accept(messages[-1])


def test_a_piece_over_the_limit() -> None:
    large = small_spec(dtype="float32")
    object.__setattr__(large, "page_tokens", 4096)
    assembler = FrameAssembler(large, 1)
    data = bytes(PIECE_BYTES + 1)
    with pytest.raises(InternalError, match="a piece of"):
        assembler.accept(piece(0, 0, data))


def test_the_longest_frame_has_room_for_every_codec_and_a_bound() -> None:
    for group in range(SPEC.groups):
        raw = HEADER_BYTES + SPEC.group_bytes(group)
        assert raw <= longest_frame(SPEC, group) <= MAX_PARSED_FRAME_BYTES
