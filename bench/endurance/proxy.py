"""A network between the service and Redis that can be slow, forget connections, or cut them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")

_PIECE: Final = 1 << 16


class Proxy:
    """Carries TCP connections to a port. Any thread may change how."""

    def __init__(self, target: int) -> None:
        """
        Args:
            target: port on loopback.
        """
        self.delay_s = 0.0
        """Before each piece of an answer."""
        self.swallows = False
        """Bytes vanish, and nobody is told: connections that a firewall forgot."""
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._done(self._start())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Resets every connection."""

        async def cut_all() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._done(cut_all())

    def close(self) -> None:
        """Ends all of it."""
        self.cut()

        async def end() -> None:
            self._server.close()

        self._done(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back, 0.0), self._carry(there, writer, None))
        finally:
            self._writers -= {writer, back}

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float | None
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_PIECE):
                if pause := self.delay_s if delay is None else delay:
                    await asyncio.sleep(pause)
                if not self.swallows:
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()
