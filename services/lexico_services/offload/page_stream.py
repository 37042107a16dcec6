"""Pages out of the parts of an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from lexico_codec.pieces import Piece
from lexico_codec.put_messages import PageEnd
from lexico_codec.upload import PageAssembler
from lexico_proto.errors import DeadlineExpired, StreamTooLong


class PageStream:
    """Reads one page after another. A page counts once its end agrees with its bytes in length and
    sum."""

    def __init__(
        self, parts: AsyncIterator[memoryview | PageEnd], idle_s: float, min_bytes_per_s: int
    ) -> None:
        """
        Args:
            parts: of the upload, behind its header.
            idle_s: seconds without a part after which it is given up.
            min_bytes_per_s: what of a page must come, after `idle_s`.
        """
        self._parts = parts
        self._idle_s = idle_s
        self._min_bytes_per_s = min_bytes_per_s

    async def page(self, page: int, page_bytes: int) -> tuple[list[Piece], int]:
        """The bytes of a page, or of a slice of one, in pieces; and their checksum.

        Args:
            page: index of the page expected.
            page_bytes: its length.

        Raises:
            StreamTruncated, StreamTooLong, StreamDamaged: the bytes are not those announced.
            InvalidInput: a message that does not belong here.
            DeadlineExpired: nothing came for `idle_s`, or the page came too slowly.
        """
        assembler = PageAssembler(page, page_bytes)
        seconds = self._idle_s + page_bytes / self._min_bytes_per_s
        try:
            async with asyncio.timeout(seconds) as timer:
                while (part := await self._next()) is not None:
                    if isinstance(part, PageEnd):
                        return assembler.end(part.page, part.checksum), part.checksum
                    assembler.add(part)
        except TimeoutError:
            if not timer.expired():
                raise
            # Not within `except`: the error would keep the bytes of the page alive.
        else:
            raise assembler.cut()
        raise DeadlineExpired(
            f"page {page} took over {seconds:.3g} s to come: the upload is given up, its room is "
            "needed"
        )

    async def expect_end(self) -> None:
        """Waits for the end of the upload.

        Raises:
            StreamTooLong: there is more.
            DeadlineExpired: nothing came for `idle_s`.
        """
        if await self._next() is not None:
            raise StreamTooLong("the upload carries more than its pages")

    async def _next(self) -> memoryview | PageEnd | None:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(self._parts, None)
        except TimeoutError:
            raise DeadlineExpired(
                f"no data for {self._idle_s:g} s: the upload is given up, its room is needed"
            ) from None
