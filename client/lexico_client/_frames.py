"""The stream of a Get, checked piece by piece: out come whole frames in the order agreed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lexico_codec.frame import HEADER_BYTES
from lexico_codec.limits import MAX_PARSED_FRAME_BYTES
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InternalError
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as reload


@dataclass(frozen=True)
class Frame:
    """One frame as it came, its bytes not verified yet."""

    page: int
    group: int
    data: bytearray


class FrameAssembler:
    """Puts the pieces of frames together.

    The order is fixed: group 0 of every page, then group 1, and so on; a Miss ends the pages.
    Anything else, and any length that cannot be, is the service's fault and raises `InternalError`.
    At most one frame is held, and no memory is taken for a length that was not checked.
    """

    def __init__(self, spec: CacheSpec, pages: int) -> None:
        self.pages = pages
        """Pages that the service still gives; each Miss lowers it."""
        self.miss_reason: reload.MissReason = reload.MISS_REASON_UNSPECIFIED
        """Why the last Miss was one, as the service says."""
        self._groups = spec.groups
        self._longest = [longest_frame(spec, group) for group in range(spec.groups)]
        self._group = 0
        self._page = 0
        self._buffer: bytearray | None = None
        self._filled = 0

    @property
    def complete(self) -> bool:
        """Whether every frame of every page that is given has come."""
        return self.pages == 0 or self._group == self._groups

    def accept(self, message: reload.GetResponse) -> Frame | None:
        """Takes the next message; a frame where it was the last piece of one.

        Raises:
            InternalError: the message breaks the protocol.
        """
        part = message.WhichOneof("part")
        if self.complete:
            raise InternalError("get: a message after the last frame")
        if part == "miss":
            self._miss(message.miss.page)
            self.miss_reason = message.miss.reason
            return None
        if part != "frame":
            raise InternalError("get: a message that is neither frame nor miss")
        return self._piece(message.frame)

    def _miss(self, page: int) -> None:
        if self._buffer is not None or page >= self.pages:
            raise InternalError(f"get: a miss of page {page} out of place")
        self.pages = page
        if self._page >= page:
            self._page, self._group = 0, self._group + 1

    def _piece(self, piece: reload.FramePart) -> Frame | None:
        if (piece.page, piece.group) != (self._page, self._group):
            raise InternalError(
                f"get: page {piece.page} group {piece.group} where page {self._page} group "
                f"{self._group} was due"
            )
        if self._buffer is None:
            if not HEADER_BYTES <= piece.frame_bytes <= self._longest[self._group]:
                raise InternalError(f"get: a frame of {piece.frame_bytes} bytes is announced")
            self._buffer, self._filled = bytearray(piece.frame_bytes), 0
        end = self._filled + len(piece.data)
        if len(self._buffer) != piece.frame_bytes or end > piece.frame_bytes:
            raise InternalError("get: the pieces of a frame do not add up to its length")
        if not 0 < len(piece.data) <= PIECE_BYTES:
            raise InternalError(f"get: a piece of {len(piece.data)} bytes")
        self._buffer[self._filled : end] = piece.data
        self._filled = end
        return self._finished() if end == piece.frame_bytes else None

    def _finished(self) -> Frame | None:
        if self._buffer is None:
            return None
        frame = Frame(self._page, self._group, self._buffer)
        self._buffer = None
        self._page += 1
        if self._page == self.pages:
            self._page, self._group = 0, self._group + 1
        return frame


def longest_frame(spec: CacheSpec, group: int) -> int:
    """Most bytes that a frame of this group can have: four times what the codec or the tensor
    itself takes."""
    layers = len(spec.group_range(group))
    encoded = layers * spec.codec.encoded_bytes(spec.geometry, spec.page_tokens)
    most = HEADER_BYTES + 4 * math.ceil(max(encoded, spec.group_bytes(group)))
    return min(most, MAX_PARSED_FRAME_BYTES)
