"""How threads without an event loop run coroutines: the engine of the synchronous client."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lexico_client._loop_thread import GRACE_SECONDS, OF_PARENTS, Call, LoopThread
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import (
    Cancelled,
    DeadlineExpired,
    InternalError,
    LexicoError,
    Unsupported,
)

T = TypeVar("T")

_log = logging.getLogger(__name__)


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
        # A signal handler, or __del__, may call in the middle of a call of its thread.
        self._lock = threading.RLock()
        self._closing = threading.RLock()
        self._closed = False
        self._loop: LoopThread | None = None
        renew_in_children(self)

    def after_fork(self) -> None:
        """Forgets the loop, and the locks that other threads may have held."""
        self._lock, self._closing = threading.RLock(), threading.RLock()
        if self._loop is not None:
            OF_PARENTS.append(self._loop)
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
            instead: makes the result where there is no loop to wait for; else that is raised.

        Raises:
            Cancelled: closed before this, or meanwhile, or the interpreter is shutting down.
            Unsupported: called on the loop itself.
            BaseException: what the work raised.
        """
        try:
            loop, call = self._started(work)
        except BaseException as error:
            work.close()
            if instead is None or not isinstance(error, LexicoError):
                raise
            return instead(error)
        lost = loop.wait(call, seconds)
        try:
            if lost is not None:
                raise lost
            return call.result()
        except (Cancelled, DeadlineExpired, InternalError) as error:
            if instead is None or (error is not lost and not call.cancelled):
                raise
            return instead(error)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Has the loop run work that nobody waits for. Nothing where there is none to run it."""
        try:
            self._started(work)
        except LexicoError:
            work.close()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ends the thread once `last` has run on it. A second caller waits for the first.

        On the loop itself, where a collected object may call it, it begins the end and returns.
        """
        if self._loop is not None and self._loop.current:
            self._closed = True
            self._loop.start(self._end(self._loop, last))
            return
        with self._closing:
            with self._lock:
                if self._closed:
                    return
                self._closed = True
                try:
                    loop = self._running()
                    call = loop.start(last())
                except LexicoError as error:
                    _log.debug("closed without a loop: %s", error)
                    return
            lost = loop.wait(call, GRACE_SECONDS)
            if lost is not None:
                _log.warning("not closed in order: %s", lost)
            loop.stop()

    async def _end(self, loop: LoopThread, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await last()
        finally:
            loop.halt()

    def _started(self, work: Coroutine[Any, Any, T]) -> tuple[LoopThread, Call[T]]:
        with self._lock:
            if self._closed:
                raise Cancelled("the client is closed")
            loop = self._running()
            return loop, loop.start(work)

    def _running(self) -> LoopThread:
        if sys.is_finalizing():  # daemon threads do not run any more
            raise Cancelled("the interpreter is shutting down")
        if self._loop is None or self._loop.ended:
            self._loop = LoopThread(self._name)
        if self._loop.current:
            raise Unsupported("the client's own event loop cannot wait for itself")
        return self._loop
