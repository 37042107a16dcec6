"""How threads without an event loop run coroutines: the engine of the synchronous client."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from lexico_client._loop_thread import GRACE_SECONDS, LoopThread
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import Cancelled, LexicoError

T = TypeVar("T")

_log = logging.getLogger(__name__)

_OF_PARENTS: Final[list[LoopThread]] = []
"""Loops of the process that this one was forked from. They are kept: to close one would take its
socket out of the epoll set that both processes share, and the parent's loop would sleep on."""


class Runner:
    """Runs coroutines of any thread on one loop, which the first of them starts.

    A forked child has no copy of the loop's thread: its first call starts another, as does the
    first after the thread has ended.
    """

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of the thread.
        """
        self._name = name
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._loop: LoopThread | None = None
        renew_in_children(self)

    def after_fork(self) -> None:
        """Forgets the loop, and the locks that other threads may have held."""
        self._lock, self._closing = threading.Lock(), threading.Lock()
        if self._loop is not None:
            _OF_PARENTS.append(self._loop)
            self._loop = None

    def run(
        self,
        work: Coroutine[Any, Any, T],
        seconds: float,
        instead: Callable[[LexicoError], T] | None = None,
    ) -> T:
        """Result of the work.

        Args:
            work: ends within `seconds`, or soon after.
            seconds: until the loop is looked at; see `LoopThread.wait`.
            instead: makes the result where the loop is lost; else that is raised.

        Raises:
            Cancelled: closed before this, or meanwhile.
            RuntimeError: called on the loop itself.
            BaseException: what the work raised.
        """
        try:
            with self._lock:
                if self._closed:
                    raise Cancelled("the client is closed")
                loop = self._running()
                call = loop.start(work)
        except BaseException:
            work.close()
            raise
        error = loop.wait(call, seconds)
        if error is None:
            return call.result()
        if instead is None:
            raise error
        return instead(error)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ends the thread once `last` has run on it. A second caller waits for the first."""
        with self._closing:
            with self._lock:
                if self._closed:
                    return
                loop = self._running()
                self._closed = True
            error = loop.wait(loop.start(last()), GRACE_SECONDS)
            if error is not None:
                _log.warning("not closed in order: %s", error)
            loop.stop()

    def _running(self) -> LoopThread:
        if self._loop is None or self._loop.ended:
            self._loop = LoopThread(self._name)
        if self._loop.current:
            raise RuntimeError("the client's own event loop cannot wait for itself")
        return self._loop
