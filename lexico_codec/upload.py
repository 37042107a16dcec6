"""A page put together from the pieces of an upload."""

from __future__ import annotations

from lexico_codec.checksum import Checksum
from lexico_proto.errors import InvalidInput, StreamDamaged, StreamTooLong, StreamTruncated
from lexico_proto.limits import PIECE_BYTES


class PageAssembler:
    """Fills a buffer with one page. The page counts once its end agrees in length and sum."""

    def __init__(self, page: int, target: memoryview) -> None:
        """
        Args:
            page: index of the page expected.
            target: where its bytes go, exactly as long as the page.
        """
        self._page = page
        self._target = target
        self._filled = 0
        self._checksum = Checksum()

    def add(self, piece: bytes | memoryview) -> None:
        """Takes the next piece.

        Raises:
            InvalidInput: an empty piece, or one over `PIECE_BYTES`.
            StreamTooLong: more bytes than the page has.
        """
        if not 0 < len(piece) <= PIECE_BYTES:
            raise InvalidInput(f"a data message of {len(piece)} bytes: outside 1..{PIECE_BYTES}")
        end = self._filled + len(piece)
        if end > len(self._target):
            raise StreamTooLong(
                f"page {self._page} carries more than its {len(self._target)} bytes"
            )
        self._target[self._filled : end] = piece
        self._checksum.add(piece)
        self._filled = end

    def end(self, page: int, checksum: int) -> None:
        """Whether the page is whole.

        Args:
            page: index that the sender gives it.
            checksum: XXH3-64 that the sender computed.

        Raises:
            StreamTruncated: bytes are missing.
            InvalidInput: another page's end.
            StreamDamaged: the bytes are not those that the sender summed.
        """
        if self._filled < len(self._target):
            self.cut()
        if page != self._page:
            raise InvalidInput(f"the end of page {page} after the bytes of page {self._page}")
        if checksum != self._checksum.value():
            raise StreamDamaged(f"page {page} was altered on its way: send it again")

    def cut(self) -> None:
        """The upload is over before the page is.

        Raises:
            StreamTruncated: always.
        """
        raise StreamTruncated(
            f"page {self._page} ended after {self._filled} of {len(self._target)} bytes, "
            "or without its end"
        )
