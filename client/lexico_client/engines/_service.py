"""The client of an adapter, on a loop of its own: no engine waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from lexico_client._async_client import AsyncClient
from lexico_client._loop_thread import Call, LoopThread
from lexico_proto.errors import LexicoError

T = TypeVar("T")


_CLOSE_S: Final = 2.0
_SHARED: Final[WeakValueDictionary[tuple[int, str], Service]] = WeakValueDictionary()
"""Process and name → the service of the sides of an adapter."""
_SHARING: Final = threading.Lock()


class Service:
    """Begins calls from any thread. The loop's thread starts with the first of them."""

    @classmethod
    def shared(cls, name: str, make: Callable[[], Service]) -> Service:
        """The service of all sides of an adapter that are in this process: one connection, so that
        none waits to connect again when another has. Each side closes it once.

        Args:
            name: of engine and settings, that no other adapter has.
            make: the service, for the first side.
        """
        with _SHARING:
            found = _SHARED.get((os.getpid(), name))
            if found is None or found.closed:
                found = _SHARED[os.getpid(), name] = make()
            else:
                found._users += 1
            return found

    def __init__(self, client: AsyncClient, engine: str, log: logging.Logger) -> None:
        """
        Args:
            client: that nobody else uses; it is closed with this.
            engine: name of the engine, for the thread's.
            log: the adapter's.
        """
        self.client = client
        self._name = f"lexico-{engine}-loop"
        self._log = log
        self._loop: LoopThread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._users = 1

    @property
    def closed(self) -> bool:
        """Whether it takes no more work."""
        return self._closed or (self._loop is not None and self._loop.ended)

    def begin(self, work: Coroutine[Any, Any, T]) -> Call[T]:
        """Starts work on the loop, and returns at once.

        Raises:
            LexicoError: there is no loop any more.
        """
        with self._lock:
            loop = self._running()
            call = loop.start(work)
        loop.leave(call)
        return call

    def wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """What work gives: for an engine's start, since it holds the caller up.

        Args:
            work: runs on the loop.
            seconds: that it may take.

        Raises:
            LexicoError: what the work raised; it took too long; or there is no loop any more.
        """
        call = self.begin(work)
        if (lost := self._running().wait(call, seconds)) is not None:
            raise lost
        return call.result()

    def close(self, last: Coroutine[Any, Any, None] | None = None, seconds: float = 0.0) -> None:
        """Ends what runs, and the thread; of a shared one the last side does. May be called more
        than once where nobody shares it.

        Args:
            last: runs before; it ends within `seconds`.
            seconds: that are waited for it.
        """
        with self._lock:
            self._users -= 1
            over, loop, closed = self._users <= 0, self._loop, self._closed
            self._closed = closed or over
        if loop is None or closed or loop.ended:
            if last is not None:
                last.close()
            return
        for work, most in ((last, seconds), (self._shut_down() if over else None, _CLOSE_S)):
            if work is None:
                continue
            try:
                call = loop.start(work)
                lost = loop.wait(call, most)
                if lost is not None:
                    self._log.warning("not closed in order: %s", lost)
            except LexicoError as error:
                self._log.warning("not closed in order: %s", error)
        if over:
            loop.stop()

    def _running(self) -> LoopThread:
        if self._loop is None:
            self._loop = LoopThread(self._name)
        return self._loop

    async def _shut_down(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()  # threads may use memory still
        await self.client.close()
        await asyncio.get_running_loop().shutdown_asyncgens()
