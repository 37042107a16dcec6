"""Messages of a stream, read so that nothing of gRPC's is lost where the reader gives up."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_ENDS_WITHIN_S: Final = 0.25
"""How long a read is waited for whose call was cancelled; milliseconds are usual."""

_left: Final[set[asyncio.Future[Any]]] = set()
"""Reads that nobody waits for any more: a loop alone holds no task."""


async def read_message(call: Any) -> Any:
    """The next message of a `grpc.aio` call, as `call.read()`.

    gRPC gives back the memory of a read when the read has been awaited to its end, and only then:
    one that is cancelled loses its message, up to a MiB here, for good (grpc#43360). So where the
    reader is cancelled, the call is, and the read ends by that.

    Raises:
        asyncio.CancelledError: this task, or the call.
        grpc.aio.AioRpcError: as `call.read()`.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        call.cancel()  # nothing where it has ended
        _left.add(reading)
        reading.add_done_callback(_ended)
        await asyncio.wait([reading], timeout=_ENDS_WITHIN_S)
        raise


def _ended(reading: asyncio.Future[Any]) -> None:
    _left.discard(reading)
    if not reading.cancelled():
        reading.exception()  # nobody else asks for it
