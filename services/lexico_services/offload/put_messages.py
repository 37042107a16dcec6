"""Messages of a Put, read without copying their payload.

Protobuf copies a bytes field twice on its way to Python: at hundreds of MB a second that is most of
what the ingress does. A data message is one tag, one length and the payload: these few bytes are
read here, in protobuf's own encoding, and everything else goes to protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from lexico_proto.v1 import offload_pb2 as pb
from lexico_services.offload.ingress import PageEnd


@dataclass(frozen=True)
class Malformed:
    """A message that is no PutRequest, or one without any part."""

    why: str


PutPart = pb.PutHeader | PageEnd | memoryview | Malformed
"""What one message carries."""

_DATA_TAG: Final = bytes((pb.PutRequest.DATA_FIELD_NUMBER << 3 | 2,))
_MAX_VARINT_BYTES: Final = 5


def parse_put(message: bytes) -> PutPart:
    """The part that a serialised PutRequest carries; the payload is a view of `message`.

    Args:
        message: from the wire, not trusted.
    """
    start = _payload_start(message)
    if start:
        return memoryview(message)[start:]
    try:
        request = pb.PutRequest.FromString(message)
    except DecodeError:
        return Malformed("a message that is no PutRequest")
    match request.WhichOneof("part"):
        case "header":
            return request.header
        case "data":
            return memoryview(request.data)
        case "page_end":
            return PageEnd(request.page_end.page, request.page_end.checksum)
    return Malformed("a message without header, data or page end")


def _payload_start(message: bytes) -> int:
    """Where the payload of a message that is one data field begins; 0 for any other message."""
    if not message.startswith(_DATA_TAG):
        return 0
    length = 0
    for at, byte in enumerate(message[1 : 1 + _MAX_VARINT_BYTES]):
        length |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            start = at + 2
            return start if start + length == len(message) else 0
    return 0
