"""Messages of a Put as bytes: client and services write and read them here.

Protobuf copies a bytes field twice on its way out of Python and twice on its way in, which at
hundreds of MB a second is most of what an upload costs. A data message is one tag, one length and
the payload: these few bytes are written and read here, in protobuf's own encoding, and every other
message goes to protobuf. What is written is what protobuf would write, and whatever protobuf reads
is read.
"""

from __future__ import annotations

import ctypes
import io
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from lexico_proto.errors import InvalidInput
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import offload_pb2 as pb


@dataclass(frozen=True)
class PageEnd:
    """What follows the bytes of a page."""

    page: int
    checksum: int
    """XXH3-64 of the page's bytes."""


@dataclass(frozen=True)
class Malformed:
    """A message that is no PutRequest, or one without any part."""

    why: str


PutPart = pb.PutHeader | PageEnd | memoryview | Malformed
"""What one message carries."""

_DATA_TAG: Final = bytes((pb.PutRequest.DATA_FIELD_NUMBER << 3 | 2,))
_MAX_VARINT_BYTES: Final = 5
_unwritten_bytes: Final = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
"""By NULL and a length: bytes that nobody has cleared. Clearing them costs as much as the copy that
is saved."""


class _Lender(io.BytesIO):
    """Memory of bytes, lent out.

    The garbage collector closes it while it is still lent where both are in a cycle, as a message
    is that an exception's traceback holds; since 3.13 Python prints what that raises.
    """

    def close(self) -> None:
        with suppress(BufferError):
            super().close()


class UnsealedMessage:
    """A message in the making: its payload is written where it will be sent from.

    gRPC for Python takes `bytes` alone, which nobody can write into. `io.BytesIO` lends out the
    memory of its bytes while they are its own, and afterwards gives them away without a copy.
    """

    def __init__(self, prefix: bytes, size: int) -> None:
        """
        Args:
            prefix: what stands before the payload.
            size: bytes of payload. They hold whatever was in that memory: all are to be written
                before anyone sees the message.
        """
        self._memory = _Lender(_unwritten_bytes(None, len(prefix) + size))
        self._whole = self._memory.getbuffer()
        self._whole[: len(prefix)] = prefix
        self.payload = self._whole[len(prefix) :]
        """Where the payload goes; gone once sealed."""

    def seal(self) -> bytes:
        """The message, which nothing changes any more.

        Where an array or tensor over the payload is still alive it is a copy.
        """
        self.payload.release()
        self._whole.release()
        return self._memory.getvalue()


class DataMessage(UnsealedMessage):
    """A data message in the making."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: bytes of payload, 1..`PIECE_BYTES`.

        Raises:
            InvalidInput: another size.
        """
        if not 0 < size <= PIECE_BYTES:
            raise InvalidInput(f"a data message of {size} bytes: outside 1..{PIECE_BYTES}")
        super().__init__(_DATA_TAG + varint(size), size)


def header_message(header: pb.PutHeader) -> bytes:
    """The message that opens a Put."""
    return pb.PutRequest(header=header).SerializeToString()


def page_end_message(end: PageEnd) -> bytes:
    """The message that ends a page."""
    wire = pb.PageEnd(page=end.page, checksum=end.checksum)
    return pb.PutRequest(page_end=wire).SerializeToString()


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


@lru_cache(maxsize=256)  # most pieces are of one length
def varint(value: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


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
