"""Data messages of a Get as bytes: written without protobuf's copies, as those of a Put are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lexico_codec.put_messages import varint
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as pb

_FRAME_TAG: Final = bytes((pb.GetResponse.FRAME_FIELD_NUMBER << 3 | 2,))
_DATA_TAG: Final = bytes((pb.FramePart.DATA_FIELD_NUMBER << 3 | 2,))


def frame_messages(page: int, group: int, frame: bytes | memoryview) -> Iterator[bytes]:
    """The GetResponses that carry a frame, each with a piece of at most `PIECE_BYTES`.

    Args:
        page: position of the page in the request.
        group: index of the layer group.
        frame: the whole of it; each piece is copied once, into its message.
    """
    # Protobuf writes fields by their numbers, and the data has the last one.
    fields = pb.FramePart(page=page, group=group, frame_bytes=len(frame)).SerializeToString()
    view = memoryview(frame)
    for start in range(0, len(frame), PIECE_BYTES):
        piece = view[start : start + PIECE_BYTES]
        head = fields + _DATA_TAG + varint(len(piece))
        yield b"".join((_FRAME_TAG, varint(len(head) + len(piece)), head, piece))


def miss_message(page: int, reason: pb.MissReason) -> bytes:
    """The GetResponse that says where the prefix ends, and why."""
    return pb.GetResponse(miss=pb.Miss(page=page, reason=reason)).SerializeToString()
