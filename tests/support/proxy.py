"""A TCP proxy on loopback that misbehaves as networks do: it swallows, delays, resets, refuses."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")

_PIECE: Final = 1 << 16
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes between those who connect to `port` and a server on loopback.

    Any thread may change how. What it has forgotten stays open and silent.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        """Of connections to come."""
        self.connections = 0
        """Made so far."""
        self.delay_s = 0.0
        """Of what a server sends, a piece."""
        self.upload_delay_s = 0.0
        """Of what a client sends, a piece."""
        self.swallows = False
        """Bytes of every connection vanish, and nobody is told."""
        self._forgotten = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._refuses = False
        self._socket = _bound(0)
        self.port: int = self._socket.getsockname()[1]
        self._server = self._done(self._listen())

    def forget(self) -> None:
        """Swallows from now on what either end of the present connections sends."""
        self._forgotten = self.connections

    def cut(self) -> None:
        """Resets every connection."""
        self._done(self._reset_all())

    def refuse(self) -> None:
        """Resets every connection, and takes no more until `accept`. The port stays ours."""

        async def close() -> None:
            self._refuses = True  # those too that are being made
            self._server.close()
            await self._reset_all()

        kept = _bound(self.port)  # and does not listen
        self._done(close())
        self._socket = kept

    def accept(self) -> None:
        """Takes connections again."""
        self._refuses = False
        self._server = self._done(self._listen())

    def close(self) -> None:
        """Ends all of it."""

        async def end() -> None:
            self._refuses = True
            self._server.close()
            await self._reset_all()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._done(end())
        self._socket.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accepted, sock=self._socket)

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(writer)
            return
        task = self._loop.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._writers.add(writer)  # whatever it leads to, or does not yet
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.server_port)
            ends.add(back)
            self._writers.add(back)
            if self._refuses:
                raise ConnectionRefusedError
            self.connections += 1
            number = self.connections
            await asyncio.gather(
                self._carry(reader, back, number, lambda: self.upload_delay_s),
                self._carry(there, writer, number, lambda: self.delay_s),
            )
        except OSError:
            for end in ends:
                _reset(end)
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        number: int,
        delay_s: Callable[[], float],
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_PIECE):
                if pause_s := delay_s():
                    await asyncio.sleep(pause_s)
                if not self.swallows and number > self._forgotten:
                    sink.write(data)
                    await sink.drain()
        if not self.swallows and number > self._forgotten:
            sink.close()


def _bound(port: int) -> socket.socket:
    """May be bound again before it is closed: no other process gets the port between."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # closed already
        end: socket.socket = writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
