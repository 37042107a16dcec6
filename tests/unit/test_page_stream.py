"""Pages out of an upload's parts: bounded in time, whatever its caller does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from lexico_codec.checksum import Checksum
from lexico_codec.put_messages import PageEnd
from lexico_proto.errors import DeadlineExpired, StreamTruncated
from lexico_services.offload.page_stream import PageStream
from tests.support.waiting import PATIENCE_S, settle, skip_ahead

PAGE: Final = bytes(range(200)) * 100
MOST_S: Final = PATIENCE_S * 1.5


def stream_of(*parts: memoryview | PageEnd, pause_s: float = 0.0) -> PageStream:
    """A page may take `MOST_S`."""

    async def parts_in_time() -> AsyncIterator[memoryview | PageEnd]:
        for part in parts:
            if pause_s:
                skip_ahead(pause_s)
                await settle()
            yield part

    return PageStream(parts_in_time(), PATIENCE_S, round(len(PAGE) / (PATIENCE_S / 2)))


def end_of(page: int) -> PageEnd:
    checksum = Checksum()
    checksum.add(PAGE)
    return PageEnd(page, checksum.value())


async def test_a_page_that_comes_in_time() -> None:
    first, second = memoryview(PAGE)[:50], memoryview(PAGE)[50:]
    stream = stream_of(first, second, end_of(3), pause_s=0.3 * MOST_S)
    pieces, checksum = await stream.page(3, len(PAGE))
    assert b"".join(bytes(piece) for piece in pieces) == PAGE
    assert checksum == end_of(3).checksum
    await stream.expect_end()


async def test_a_page_that_trickles_is_given_up() -> None:
    """Each message comes in time, and the page never does: room would be held for ever."""
    drops = [memoryview(PAGE)[i : i + 100] for i in range(0, len(PAGE), 100)]
    stream = stream_of(*drops, end_of(0), pause_s=PATIENCE_S / 2)
    with pytest.raises(DeadlineExpired, match="page 0 took over"):
        await stream.page(0, len(PAGE))


async def test_a_page_that_is_cut_is_no_late_one() -> None:
    with pytest.raises(StreamTruncated):
        await stream_of(memoryview(PAGE)[:50]).page(0, len(PAGE))
