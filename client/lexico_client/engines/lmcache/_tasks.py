"""Tasks of an LMCache adapter: begun by one thread, ended by another, told of by an event."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from lexico_client._loop_thread import Call
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import LexicoError

T = TypeVar("T")

_NUMBERS: Final = itertools.count(1)
"""Of tasks of all kinds: none is taken for another."""


class Tasks(Generic[T]):
    """Results of tasks of one kind, until they are fetched. Any thread may call it."""

    def __init__(self, what: str, notify: Callable[[], None], counts: Counts) -> None:
        """
        Args:
            what: they do, for warnings: `match`, `load`, `store`.
            notify: called once a result is there, in the thread that gives it.
            counts: gets the warnings.
        """
        self._what = what
        self._counts = counts
        self._notify = notify
        self._lock = threading.Lock()
        self._results: dict[int, T] = {}
        self._failed: dict[int, T] = {}
        """Tasks without a result → the one that they have if they fail."""
        self._closed = False
        renew_in_children(self)

    def after_fork(self) -> None:
        """Tasks of before are the parent's: here nothing will come of them."""
        self._lock = threading.Lock()
        self._results |= self._failed
        self._failed = {}

    @property
    def under_way(self) -> int:
        """Tasks without a result."""
        return len(self._failed)

    def run(self, service: Service, work: Coroutine[Any, Any, T], failed: T, seconds: float) -> int:
        """Has the service's loop do the work; its result, or `failed`, is the task's once nobody is
        at its objects.

        Args:
            service: of the adapter.
            work: ends within `seconds`, or soon after.
            failed: the result where it fails, or is not done in time.
            seconds: that it may take.
        """
        task = self.begin(failed)

        def ended(call: Call[T]) -> None:
            result = None
            try:
                result = call.result()
            except BaseException as error:  # noqa: BLE001 - a defect of ours is a miss
                self._counts.warn(self._what, error)
            self.end(task, result)

        try:
            service.begin(work, seconds, ended)
        except LexicoError as error:
            self._counts.warn(self._what, error)
            self.end(task)
        return task

    def begin(self, failed: T) -> int:
        """The number of a new task.

        Args:
            failed: its result if it fails.
        """
        with self._lock:
            task = next(_NUMBERS)
            self._failed[task] = failed
            return task

    def end(self, task: int, result: T | None = None) -> None:
        """Gives the result of a task; None for one that failed."""
        with self._lock:
            failed = self._failed.pop(task)
            if result is None:
                result = failed
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
