"""Tasks of an LMCache adapter: begun by one thread, ended by another, told of by an event."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_NUMBERS: Final = itertools.count(1)
"""Of tasks of all kinds: none is taken for another."""


class Tasks(Generic[T]):
    """Results of tasks of one kind, until they are fetched. Any thread may call it."""

    def __init__(self, notify: Callable[[], None]) -> None:
        """
        Args:
            notify: called once a result is there, in the thread that gives it.
        """
        self._notify = notify
        self._lock = threading.Lock()
        self._results: dict[int, T] = {}
        self._under_way = 0
        self._closed = False

    @property
    def under_way(self) -> int:
        """Tasks without a result."""
        return self._under_way

    def begin(self) -> int:
        """The number of a new task."""
        with self._lock:
            self._under_way += 1
            return next(_NUMBERS)

    def end(self, task: int, result: T) -> None:
        """Gives the result of a task."""
        with self._lock:
            self._under_way -= 1
            if self._closed:
                return
            self._results[task] = result
            self._notify()

    def take(self, task: int) -> T | None:
        """The result of a task, once; None where there is none yet, or it was taken."""
        with self._lock:
            return self._results.pop(task, None)

    def take_all(self) -> dict[int, T]:
        """Every result that is there, once."""
        with self._lock:
            taken, self._results = self._results, {}
        return taken

    def close(self) -> None:
        """Notifies nobody from now on."""
        with self._lock:
            self._closed = True
