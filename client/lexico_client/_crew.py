"""Threads in which memory is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from lexico_codec.forks import renew_in_children


class Crew:
    """A few threads, of which a call keeps to one.

    Each thread that runs torch has its own team of OpenMP workers, so frames of one load that take
    turns between threads are decoded slower. For one event loop at a time: it takes no lock.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._calls = self._idle()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Starts with threads of the child's own. The parent's are not there, nor are their teams
        of OpenMP workers."""
        self._calls = self._idle()

    def _idle(self) -> dict[Executor, int]:
        return {
            ThreadPoolExecutor(1, thread_name_prefix=f"lexico-client-{number}"): 0
            for number in range(self._threads)
        }

    @contextmanager
    def one(self) -> Iterator[Executor]:
        """The thread with the fewest calls, the first of equals."""
        chosen = min(self._calls, key=lambda thread: self._calls[thread])
        self._calls[chosen] += 1
        try:
            yield chosen
        finally:
            self._calls[chosen] -= 1

    def close(self) -> None:
        """Waits for what runs. May be called more than once."""
        for thread in self._calls:
            thread.shutdown(wait=True)
