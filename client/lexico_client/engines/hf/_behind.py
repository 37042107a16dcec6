"""Work that a node does behind its answers, one piece after another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, Generic, TypeVar

from lexico_codec.forks import renew_in_children

T = TypeVar("T")

_log = logging.getLogger(__name__)

_QUIET_SECONDS: Final = 60.0
"""Between two warnings."""


class Behind(Generic[T]):
    """Runs pieces of work in a thread, a few of which may wait.

    A forked child has none of its parent's work: its own goes to a thread of its own.
    """

    def __init__(self, name: str, most: int) -> None:
        """
        Args:
            name: of the thread.
            most: pieces that run or wait at a time.
        """
        self._name = name
        self._most = most
        self._closed = False
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Begins without work and without a thread."""
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._running = set[Future[T]]()

    def begin(self, work: Callable[[], T]) -> Future[T] | None:
        """Has it run behind the caller.

        Args:
            work: never raises.

        Returns:
            None where too many pieces wait, or it is closed.
        """
        with self._lock:
            if self._closed or len(self._running) >= self._most:
                return None
            try:
                started = self._pool.submit(work)
            except RuntimeError:  # while the interpreter shuts down
                return None
            self._running.add(started)
        started.add_done_callback(self._ended)
        return started

    def _ended(self, done: Future[T]) -> None:
        with self._lock:
            self._running.discard(done)

    def drain(self, timeout: float | None = None) -> bool:
        """Waits for what runs or waits now; whether all of it has ended."""
        with self._lock:
            running = set(self._running)
        return not wait(running, timeout).not_done

    def close(self, timeout: float | None = None) -> bool:
        """Takes no more, and waits as `drain` does. What has not begun by then never does."""
        with self._lock:
            self._closed = True
        drained = self.drain(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return drained


class Seldom:
    """Warnings that many calls would give, one a minute."""

    def __init__(self) -> None:
        self._last: float | None = None

    def warn(self, message: str, *values: object) -> None:
        """Logs it, unless another was logged within the last minute."""
        now = time.monotonic()
        if self._last is None or now - self._last >= _QUIET_SECONDS:
            self._last = now
            _log.warning(message, *values)
