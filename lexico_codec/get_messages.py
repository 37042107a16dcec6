"""Data messages of a Get as bytes: written without protobuf's copies, as those of a Put are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lexico_codec.put_messages import UnsealedMessage, varint
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as pb

_FRAME_TAG: Final = bytes((pb.GetResponse.FRAME_FIELD_NUMBER << 3 | 2,))
_DATA_TAG: Final = bytes((pb.FramePart.DATA_FIELD_NUMBER << 3 | 2,))


class FrameMessages:
    """The GetResponses that carry a frame, each with a piece of at most `PIECE_BYTES`.

    The frame is written into them, and is copied no more before gRPC has it.
    """

    def __init__(self, page: int, group: int, frame_bytes: int) -> None:
        """
        Args:
            page: position of the page in the request.
            group: index of the layer group.
            frame_bytes: length of the whole frame.
        """
        # Protobuf writes fields by their numbers, and the data has the last one.
        fields = pb.FramePart(page=page, group=group, frame_bytes=frame_bytes).SerializeToString()
        self._messages = []
        for start in range(0, frame_bytes, PIECE_BYTES):
            size = min(PIECE_BYTES, frame_bytes - start)
            head = fields + _DATA_TAG + varint(size)
            prefix = _FRAME_TAG + varint(len(head) + size) + head
            self._messages.append(UnsealedMessage(prefix, size))

    @property
    def runs(self) -> tuple[memoryview, ...]:
        """Where the bytes of the frame go, in order, until the messages are sealed."""
        return tuple(message.payload for message in self._messages)

    def sealed(self) -> Iterator[bytes]:
        """The messages, once the frame is there whole. To be gone through once."""
        for message in self._messages:
            yield message.seal()


def miss_message(page: int, reason: pb.MissReason) -> bytes:
    """The GetResponse that says where the prefix ends, and why."""
    return pb.GetResponse(miss=pb.Miss(page=page, reason=reason)).SerializeToString()
