"""An event loop on a thread of its own, for callers on other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from lexico_proto.errors import Cancelled, DeadlineExpired, InternalError, LexicoError

T = TypeVar("T")

GRACE_SECONDS: Final = 2.0
"""How long a loop may be busy, once a deadline has passed, before it counts as lost."""
_ROUNDS: Final = 3
"""Graces that work is given past its deadline on a loop that answers."""


class Call(Generic[T]):
    """A coroutine on the loop, as another thread sees it."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.ended = threading.Event()
        """Set when the work has ended, or the loop has."""
        self._work = work
        self._task: asyncio.Task[T] | None = None

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self._task is not None and self._task.done()

    @property
    def cancelled(self) -> bool:
        """Whether it was ended from outside."""
        return self._task is not None and self._task.cancelled()

    def begin(self) -> None:
        """On the loop."""
        self._task = asyncio.get_running_loop().create_task(self._work)
        self._task.add_done_callback(lambda _: self.ended.set())

    def once_ended(self, then: Callable[[], None]) -> None:
        """On the loop, once it has begun: has `then` called when the work has ended."""
        if self._task is not None:
            self._task.add_done_callback(lambda _: then())

    def cancel(self) -> None:
        """On the loop."""
        if self._task is not None:
            self._task.cancel()

    def drop(self) -> None:
        """Of work that was never begun, leaves nothing to be awaited."""
        if self._task is None:
            self._work.close()

    def result(self) -> T:
        """Of a call that has ended.

        Raises:
            Cancelled: the loop was shut down during the call.
            InternalError: it ended under the call.
            BaseException: what the work raised.
        """
        if self._task is None:
            raise InternalError("the call has not begun")
        if not self._task.done():
            raise InternalError("the client's event loop ended under the call")
        try:
            return self._task.result()
        except asyncio.CancelledError as error:
            raise Cancelled("the client was closed during the call") from error


class LoopThread:
    """Runs coroutines of other threads. When it ends, for whatever reason, so do their waits."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.RLock()  # a signal handler, or __del__, may call as well
        self._calls = set[Call[Any]]()
        self._ended = False
        # A daemon, so that a program that forgets to close still ends.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # while the interpreter shuts down
            self._loop.close()
            raise Cancelled(f"no thread can be started: {error}") from error

    @property
    def ended(self) -> bool:
        """Whether it takes no more calls."""
        return self._ended

    @property
    def current(self) -> bool:
        """Whether the caller runs on it, and so cannot wait for it."""
        return threading.current_thread() is self._thread

    def start(self, work: Coroutine[Any, Any, T]) -> Call[T]:
        """Begins the work as soon as the loop comes to it."""
        call = Call(work)
        self._calls.add(call)
        if not self._post(call.begin):
            self._calls.discard(call)
            call.drop()
            raise InternalError("the client's event loop has ended")
        return call

    def wait(self, call: Call[Any], seconds: float) -> LexicoError | None:
        """Waits until the call is finished; what went wrong where it will not be.

        Work has its own deadline, and ends soon after it. So a loop that is alive is waited for,
        though not for ever; one that does not answer is not.

        Args:
            call: of this loop.
            seconds: what the work may take before the loop is looked at.

        Returns:
            None: the call has a result.
            DeadlineExpired: the loop does not answer, or the work does not end. It is left behind.
            InternalError: the loop has ended under the call.
        """
        try:
            answers = self._settle(call, min(seconds, threading.TIMEOUT_MAX))
        except BaseException:
            # An interrupt ends the wait, not the work: the caller's memory is in use until it has
            # ended.
            self._post(call.cancel)
            self._settle(call, 0.0)
            raise
        finally:
            self._calls.discard(call)
        if not answers:
            self._post(call.cancel)
            return DeadlineExpired(
                f"no answer within {seconds:g} s: the client's event loop is stuck"
            )
        if not call.finished:
            call.drop()
            return InternalError("the client's event loop ended under the call")
        return None

    def leave(self, call: Call[Any]) -> None:
        """Keeps a call of this loop until its work has ended, though nobody waits for it."""

        def ended() -> None:
            self._calls.discard(call)

        if not self._post(lambda: call.once_ended(ended)):
            ended()
            call.drop()

    def halt(self) -> None:
        """Ends the thread, once the loop has nothing to do at the moment."""
        self._post(self._loop.stop)

    def stop(self) -> None:
        """As `halt`, and waits for it, though not for ever."""
        self.halt()
        self._thread.join(GRACE_SECONDS)

    def _settle(self, call: Call[Any], seconds: float) -> bool:
        """Waits until the call has ended; False where it does not, or the loop does not answer."""
        for _ in range(_ROUNDS):
            if call.ended.wait(seconds):
                return True
            if not self._answers():
                break
            seconds = GRACE_SECONDS
        return call.ended.is_set()

    def _answers(self) -> bool:
        answer = threading.Event()
        return self._post(answer.set) and answer.wait(GRACE_SECONDS)

    def _post(self, callback: Callable[[], None]) -> bool:
        """Has the loop call it; False where the loop has ended."""
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(callback)
            return not self._ended

    def _main(self) -> None:
        try:
            # Not only `stop` ends it: work that raises one of these does too. Its caller gets it.
            with suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()
        finally:
            with self._lock:
                self._ended = True
                self._loop.close()
                calls = list(self._calls)
            for call in calls:
                call.ended.set()
