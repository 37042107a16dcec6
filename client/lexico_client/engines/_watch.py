"""Ends the calls of a loop that does not end them: it is stuck, or has ended."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Final

from lexico_client._loop_thread import Call
from lexico_proto.errors import Cancelled, DeadlineExpired, LexicoError

_LOOK_S: Final = 0.005


class Watch:
    """Of the calls of one loop, on a thread of its own, which starts with the first of them."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of the thread.
        """
        self._name = name
        self._changed = threading.Condition()
        self._due: dict[Call[Any], float] = {}
        self._closed = False
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def add(self, call: Call[Any], seconds: float | None) -> None:
        """Has a call end so many seconds from now on at the latest, or once no thread is at its
        memory any more, if that is later.

        Args:
            call: that has not ended.
            seconds: None for one that may take as long as its loop is there.

        Raises:
            Cancelled: no thread can be started, as while the interpreter shuts down.
        """
        due = math.inf if seconds is None else time.monotonic() + seconds
        with self._changed:
            self._due[call] = due
            if self._thread is None:
                self._start()
            elif due < self._wakes:
                self._changed.notify()

    def drop(self, call: Call[Any]) -> None:
        """To be called of each that has ended."""
        with self._changed:
            self._due.pop(call, None)
            if self._closed:
                self._changed.notify_all()

    def held(self, call: Call[Any]) -> None:
        """To be called of one that would have ended, but for a thread that is at its memory."""
        with self._changed:
            if self._due.get(call, 0.0) > 0.0:
                self._due[call] = 0.0
                self._changed.notify()

    def close(self, seconds: float) -> int:
        """Ends all calls that there are. The thread ends with the last of them.

        Args:
            seconds: that are waited for threads at their memory.

        Returns:
            Calls that have not ended.
        """
        with self._changed:
            self._closed = True
            self._due = dict.fromkeys(self._due, 0.0)
            self._changed.notify_all()
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._due, seconds)
            return len(self._due)

    def after_fork(self) -> list[Call[Any]]:
        """In a forked child: forgets its calls, and gives them."""
        calls, self._due = list(self._due), {}
        self._changed, self._thread, self._wakes = threading.Condition(), None, math.inf
        return calls

    def _start(self) -> None:
        thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Cancelled(f"no thread can be started: {error}") from error
        self._thread = thread

    def _main(self) -> None:
        while (late := self._late()) is not None:
            held = [call for call in late if not call.end(self._why())]
            if held:
                time.sleep(_LOOK_S)

    def _late(self) -> list[Call[Any]] | None:
        """Waits for calls that are due; None once there will be none."""
        with self._changed:
            while self._due or not self._closed:
                now = time.monotonic()
                late = [call for call, due in self._due.items() if due <= now]
                if late:
                    return late
                self._wakes = min(self._due.values(), default=math.inf)
                left = min(self._wakes - now, threading.TIMEOUT_MAX)
                self._changed.wait(None if math.isinf(left) else left)
            self._thread = None
            self._changed.notify_all()
            return None

    def _why(self) -> LexicoError:
        if self._closed:
            return Cancelled("the client was closed during the call")
        return DeadlineExpired("no answer in time: the client's event loop is stuck")
