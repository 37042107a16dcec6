"""An event loop on a thread of its own, for callers on other threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar

from lexico_client._crew import OF_WORK, Access
from lexico_proto.errors import Cancelled, DeadlineExpired, InternalError, LexicoError

T = TypeVar("T")

_log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 2.0
"""How long a loop may be busy, once a deadline has passed, before it counts as lost."""
_ROUNDS: Final = 3
"""Graces that work is given past its deadline on a loop that answers."""


OF_PARENTS: Final[list[LoopThread]] = []
"""Loops of the process that this one was forked from. They are kept: to close one would take its
socket out of the epoll set that both processes share, and the parent's loop would sleep on."""


class Call(Generic[T]):
    """A coroutine on the loop, as another thread sees it."""

    def __init__(
        self,
        work: Coroutine[Any, Any, T],
        access: Access | None = None,
        held: Callable[[Call[T]], None] | None = None,
    ) -> None:
        """
        Args:
            work: what is to run.
            access: its right to memory of its caller's, which ends with the call: the call has not
                ended before no thread is there.
            held: called where it would end, but for a thread that is at the memory still: `end` is
                to be called again.
        """
        self.ended = threading.Event()
        """Set when the work has ended, or the loop has; or the call was ended from outside."""
        self.then: list[Callable[[Call[T]], None]] = []
        """Called once it has ended, however it did, on whatever thread ends it. Added to before it
        begins."""
        self._work = work
        self._access = access
        self._held = held
        self._task: asyncio.Task[T] | None = None
        self._lock = threading.Lock()
        self._over = False
        self._lost: LexicoError | None = None

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self._lost is None and self._task is not None and self._task.done()

    @property
    def cancelled(self) -> bool:
        """Whether it was ended from outside."""
        return self._task is not None and self._task.cancelled()

    @property
    def lost(self) -> bool:
        """Whether it was ended though its work had not."""
        return self._lost is not None

    def begin(self) -> None:
        """On the loop."""
        if self._over:
            self.drop()
            return
        context = copy_context()
        context.run(OF_WORK.set, self._access)
        self._task = asyncio.get_running_loop().create_task(self._work, context=context)
        self._task.add_done_callback(lambda _: self.end(_closed()))

    def end(self, lost: LexicoError) -> bool:
        """Ends the call, once no thread is at its memory, and none comes there any more. On any
        thread, more than once.

        Args:
            lost: why there is no result, where the work has not ended.

        Returns:
            Whether it has ended.
        """
        inside = None if self._access is None else self._access.end()
        if inside is not None and not inside.is_set():
            if self._held is not None:
                self._held(self)
            return False
        with self._lock:
            if self._over:
                return True
            self._over = True
            if self._task is None or not self._task.done():
                self._lost = lost
        for each in self.then:
            try:
                each(self)
            except Exception:  # noqa: BLE001 - others follow, and who waits is told
                _log.exception("what follows a call failed")
        self.ended.set()
        return True

    def forget(self, lost: LexicoError) -> None:
        """In a forked child, where neither its loop nor threads at its memory are: ends it at once,
        and nothing follows."""
        self._lock, self._over, self._lost = threading.Lock(), True, lost
        self.ended = threading.Event()
        self.ended.set()

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
            LexicoError: why the call was ended from outside.
            BaseException: what the work raised.
        """
        if self._lost is not None:
            raise self._lost
        if self._task is None or not self._task.done():
            raise InternalError("the call has not ended")
        try:
            return self._task.result()
        except asyncio.CancelledError as error:
            raise _closed() from error


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
        """Begins the work as soon as the loop comes to it.

        Raises:
            InternalError: the loop has ended.
        """
        call = Call(work)
        self.begin(call)
        return call

    def begin(self, call: Call[Any]) -> None:
        """Begins a call as soon as the loop comes to it, and keeps it until it has ended, though
        nobody waits for it.

        Raises:
            InternalError: the loop has ended.
        """
        call.then.append(self._calls.discard)
        with self._lock:
            if not self._ended:
                self._calls.add(call)
                self._loop.call_soon_threadsafe(call.begin)
                return
        call.drop()
        raise InternalError("the client's event loop has ended")

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
            return InternalError("the client's event loop ended under the call")
        return None

    def cancel(self, call: Call[Any]) -> None:
        """Ends the work of a call of this loop, as soon as the loop comes to it."""
        self._post(call.cancel)

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
            for call in list(self._calls):
                call.end(InternalError("the client's event loop ended under the call"))
            with suppress(BaseException):
                self._loop.run_until_complete(_all_ended())
            self._loop.close()


async def _all_ended() -> None:
    """Ends what runs on the loop, but does not wait for it for long."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=GRACE_SECONDS)


def _closed() -> Cancelled:
    return Cancelled("the client was closed during the call")
