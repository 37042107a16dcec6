"""Frames are written to the wire as protobuf writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.get_messages import FrameMessages, miss_message
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as pb

U32 = st.integers(0, (1 << 32) - 1)


def by_protobuf(page: int, group: int, frame: bytes) -> list[bytes]:
    return [
        pb.GetResponse(
            frame=pb.FramePart(
                page=page,
                group=group,
                frame_bytes=len(frame),
                data=frame[start : start + PIECE_BYTES],
            )
        ).SerializeToString()
        for start in range(0, len(frame), PIECE_BYTES)
    ]


def written(page: int, group: int, frame: bytes) -> list[bytes]:
    messages, start = FrameMessages(page, group, len(frame)), 0
    for run in messages.runs:
        run[:] = frame[start : start + len(run)]
        start += len(run)
    assert start == len(frame)
    return list(messages.sealed())


@given(page=U32, group=U32, frame=st.binary(min_size=1, max_size=20_000))
def test_any_frame(page: int, group: int, frame: bytes) -> None:
    assert written(page, group, frame) == by_protobuf(page, group, frame)


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES])
def test_frames_of_several_pieces(size: int) -> None:
    frame = bytes(range(251)) * (size // 251 + 1)
    assert written(3, 0, frame[:size]) == by_protobuf(3, 0, frame[:size])


def test_a_frame_of_no_bytes_has_no_messages() -> None:
    messages = FrameMessages(0, 0, 0)
    assert messages.runs == ()
    assert list(messages.sealed()) == []


@given(U32, st.sampled_from(pb.MissReason.values()))
def test_a_miss(page: int, reason: pb.MissReason) -> None:
    message = pb.GetResponse.FromString(miss_message(page, reason))
    assert message == pb.GetResponse(miss=pb.Miss(page=page, reason=reason))
