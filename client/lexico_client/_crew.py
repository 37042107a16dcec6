"""Threads in which the caller's memory is worked on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar
from weakref import finalize

from lexico_client._deadline import Budget
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import Busy, Cancelled, DeadlineExpired

T = TypeVar("T")
P = ParamSpec("P")

GRACE_SECONDS: Final = 1.0
"""What a thread is given to end what it is at, where nobody can be told that it has not: after a
call that was cancelled, and when a crew is closed. A call with a result ends at its deadline."""
MAX_STUCK: Final = 8
"""Threads that were left behind and are still at it; with more there is no further work."""

_LOOK_SECONDS: Final = 0.002

_Job = tuple["Future[Any]", Callable[[], Any]]


class Worker(Executor):
    """One thread that does one thing after another.

    Unlike those of `ThreadPoolExecutor` it is a daemon: a thread that is stuck does not keep the
    process from ending, and other threads may go on to use it while the interpreter shuts down.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        finalize(self, self._jobs.put, None).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As of every executor.

        Raises:
            Cancelled: it is closed, or the interpreter is ending and starts no more threads.
        """
        if self._closed:
            raise Cancelled("the client is closed")
        if self._thread is None:
            thread = threading.Thread(
                target=_work, args=(self._jobs,), name=f"{self._name}_0", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                raise Cancelled(f"no thread can be started: {error}") from error
            self._thread = thread
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    @property
    def alive(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None and self._thread.is_alive()

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Ends the thread after what it was given; does not wait for that."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    """Must not know the worker: while it ran, that could not be collected."""
    while (job := jobs.get()) is not None:
        future, work = job
        if future.set_running_or_notify_cancel():
            try:
                result = work()
            except StopIteration as error:  # no future of a loop takes one: a wait without an end
                future.set_exception(_raised(error))
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                future.set_exception(error)
            else:
                future.set_result(result)
                del result  # may be the caller's memory, and the next job may never come
        del job, future, work


def _raised(error: StopIteration) -> RuntimeError:
    """As Python makes of one that leaves a coroutine."""
    made = RuntimeError("a worker thread's work raised StopIteration")
    made.__cause__ = error
    return made


class Access:
    """The right of worker threads to the caller's memory; it ends with the call."""

    def __init__(self, within: Access | None = None) -> None:
        """
        Args:
            within: a wider right: its end ends this one too, and who uses this one uses it.
        """
        self._within = within
        self._lock = threading.Lock()
        self._over = False
        self._users = 0
        self._inside: threading.Event | None = None

    @classmethod
    def of_call(cls) -> Access:
        """A right within that of the work that calls, where it has one."""
        return cls(OF_WORK.get())

    @property
    def over(self) -> bool:
        """Whether the call has ended."""
        return self._over or (self._within is not None and self._within.over)

    @contextmanager
    def using(self) -> Iterator[bool]:
        """In the thread: whether what follows may touch the memory."""
        with self._lock:
            allowed = not self._over
            if allowed:
                self._users += 1
                self._inside = self._inside or threading.Event()
        try:
            if allowed and self._within is not None:
                with self._within.using() as allowed_there:
                    yield allowed_there
            else:
                yield allowed
        finally:
            if allowed:
                self._leave()

    def end(self) -> threading.Event | None:
        """No thread begins to touch the memory any more.

        Returns:
            None: none does. Else an event that is set once the last that still does has ended.
        """
        with self._lock:
            self._over = True
            return self._inside

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            inside, self._inside = self._inside, None
        if inside is not None:
            inside.set()


OF_WORK: Final[ContextVar[Access | None]] = ContextVar("lexico_access", default=None)
"""The right that all of a piece of work has to the memory that it is about. Whoever begins the work
may end it from outside: see `engines._service`."""


class Shift:
    """The work of one call, in one thread. For one event loop."""

    def __init__(self, crew: Crew, worker: Worker, budget: Budget, access: Access) -> None:
        self._crew = crew
        self._worker = worker
        self._budget = budget
        self.access = access
        """Of whatever this call starts."""

    def start(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Has the thread do it after what it was given before."""
        return asyncio.get_running_loop().run_in_executor(self._worker, work, *args)

    async def finished(self, future: asyncio.Future[Any], slack: float = 0.0) -> bool:
        """Waits for work, even while cancelled; what it raised is left alone.

        A thread cannot be stopped, and this one reads or writes the caller's memory, or is in a
        function of the caller's. It works on one layer group, so the wait is short. At the deadline
        it ends in any case: the thread is left behind, and the crew gets another. What it gives
        later goes to nobody.

        Args:
            future: the work.
            slack: seconds beyond the deadline, for work of milliseconds that is worth them.

        Returns:
            False: it was left behind.
        """
        loop = asyncio.get_running_loop()
        cancelled: asyncio.CancelledError | None = None
        end = self._budget.end
        if slack:
            end = max(end, loop.time()) + slack
        while not future.done():
            if loop.time() >= end:
                future.cancel()  # nothing, where it has begun
                self._crew.lose(self._worker)
                break
            try:
                await asyncio.wait([future], timeout=end - loop.time())
            except asyncio.CancelledError as error:
                cancelled = error
        done = future.done() and not future.cancelled()
        if done:
            future.exception()  # marked as seen
        if cancelled is not None:
            raise cancelled
        return done

    async def result(self, future: asyncio.Future[T]) -> T:
        """Result of work, waited for as in `finished`.

        Raises:
            DeadlineExpired: it was left behind.
            BaseException: what it raised.
        """
        if not await self.finished(future):
            raise DeadlineExpired(f"{self._budget.what}: a worker thread is stuck")
        return future.result()


class Crew:
    """A few threads, of which a call keeps to one.

    Each thread that runs torch has its own team of OpenMP workers, so frames of one load that take
    turns between threads are decoded slower. For one event loop at a time: it takes no lock.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._stuck: list[threading.Event] = []
        self._calls = self._idle()
        self._closed = False
        renew_in_children(self)

    def after_fork(self) -> None:
        """Starts with threads of the child's own. The parent's are not there, nor are their teams
        of OpenMP workers."""
        self._calls, self._stuck = self._idle(), []

    def _idle(self) -> dict[Worker, int]:
        return {self._hired(number): 0 for number in range(self._threads)}

    def _hired(self, number: int) -> Worker:
        return Worker(f"lexico-client-{number}")

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """The thread with the fewest calls, the first of equals.

        Raises:
            Busy: too many threads are stuck.
            Cancelled: closed.
        """
        if self._closed:
            raise Cancelled("the client is closed")
        self._stuck = [ended for ended in self._stuck if not ended.is_set()]
        if len(self._stuck) >= MAX_STUCK:
            raise Busy(f"{len(self._stuck)} threads of the client are stuck: no more are started")
        chosen = min(self._calls, key=lambda thread: self._calls[thread])
        self._calls[chosen] += 1
        try:
            yield chosen
        finally:
            if chosen in self._calls:  # not replaced meanwhile
                self._calls[chosen] -= 1

    @asynccontextmanager
    async def shift(self, budget: Budget, access: Access | None = None) -> AsyncIterator[Shift]:
        """One call's work, in the thread of `one`; at the end its access is over.

        A cancelled call has no result that could name a thread that is still in the caller's
        memory. So it waits for it, for a moment beyond its deadline.
        """
        access = access or Access.of_call()
        with self.one() as worker:
            try:
                yield Shift(self, worker, budget, access)
            except asyncio.CancelledError:
                await _left(access)
                raise
            finally:
                access.end()

    def lose(self, worker: Worker) -> None:
        """Puts another thread in the place of one that is stuck."""
        if worker not in self._calls:
            return
        free = threading.Event()
        worker.submit(free.set)
        self._stuck.append(free)
        # Its thread ends once no call knows the worker any more, and nothing is left to do.
        calls = list(self._calls.items())
        number = list(self._calls).index(worker)
        calls[number] = self._hired(number), 0
        self._calls = dict(calls)

    def close(self) -> None:
        """Ends the threads after what they were given. May be called more than once."""
        self._closed = True
        for worker in self._calls:
            worker.shutdown()

    async def ended(self) -> None:
        """Once `close` was called, waits for the threads, but not for long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GRACE_SECONDS
        while any(worker.alive for worker in self._calls) and loop.time() < end:
            await asyncio.sleep(_LOOK_SECONDS)


async def _left(access: Access) -> None:
    """Ends the access, and waits until no thread is in the memory, but not for long."""
    inside = access.end()
    loop = asyncio.get_running_loop()
    end = loop.time() + GRACE_SECONDS
    while inside is not None and not inside.is_set() and loop.time() < end:
        with suppress(asyncio.CancelledError):  # the one that led here is raised in any case
            await asyncio.sleep(_LOOK_SECONDS)
