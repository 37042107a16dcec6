"""The client of an adapter, on a loop of its own: no engine waits for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from lexico_client._async_client import AsyncClient
from lexico_client._crew import Access
from lexico_client._loop_thread import GRACE_SECONDS, OF_PARENTS, Call, LoopThread
from lexico_client.engines._watch import Watch
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import Cancelled, LexicoError

T = TypeVar("T")


_CLOSE_S: Final = 2.0


class _Shared:
    """Services that several sides of an adapter have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_name: WeakValueDictionary[str, Service] = WeakValueDictionary()
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child makes its own."""
        self.lock, self.by_name = threading.Lock(), WeakValueDictionary()


_SHARED: Final = _Shared()


class Service:
    """Begins calls from any thread. The loop's thread starts with the first of them.

    Every call ends, whatever becomes of the loop: if it ends or is closed, and if it is stuck, soon
    after the call's deadline. A call's work has a right to the memory of its caller's (see
    `Access`), and calls of the client within it have no other; it ends with the call, and no call
    ends while a thread is at that memory. In a forked child all calls of before have ended, and the
    first of its own starts another loop.
    """

    @classmethod
    def shared(cls, name: str, make: Callable[[], Service]) -> Service:
        """The service of all sides of an adapter that are in this process: one connection, so that
        none waits to connect again when another has. Each side closes it once.

        Args:
            name: of engine and settings, that no other adapter has.
            make: the service, for the first side.
        """
        with _SHARED.lock:
            found = _SHARED.by_name.get(name)
            if found is None or not found._joined():
                found = _SHARED.by_name[name] = make()
            return found

    def __init__(self, client: AsyncClient, engine: str, log: logging.Logger) -> None:
        """
        Args:
            client: that nobody else uses; it is closed with this.
            engine: name of the engine, for the thread's.
            log: the adapter's.
        """
        self.client = client
        self._name = f"lexico-{engine}-loop"
        self._log = log
        self._loop: LoopThread | None = None
        self._lock = threading.Lock()
        self._watch = Watch(f"lexico-{engine}-watch")
        self._closed = False
        self._users = 1
        renew_in_children(self)

    def after_fork(self) -> None:
        """Leaves loop and calls to the parent. Whoever looks at one of them sees that it has
        ended; what was to follow them is their owners' to do."""
        self._lock = threading.Lock()
        if self._loop is not None:
            OF_PARENTS.append(self._loop)
            self._loop = None
        for call in self._watch.after_fork():
            call.forget(Cancelled("the process was forked during the call"))

    @property
    def closed(self) -> bool:
        """Whether it takes no more work."""
        return self._closed or (self._loop is not None and self._loop.ended)

    def begin(
        self,
        work: Coroutine[Any, Any, T],
        seconds: float | None = None,
        then: Callable[[Call[T]], None] | None = None,
    ) -> Call[T]:
        """Starts work on the loop, and returns at once.

        Args:
            work: ends within `seconds`, or soon after; closed where it cannot begin.
            seconds: after which, and a grace, the call ends in any case; None for work that may
                take as long as its loop is there.
            then: called once the call has ended, however it did, on a thread that it must not hold
                up.

        Raises:
            LexicoError: there is no loop any more; nothing follows then.
        """
        call = Call(work, Access(), self._watch.held)
        try:
            with self._lock:
                if self._closed:
                    raise Cancelled("the client is closed")
                loop = self._running()

            def ended(call: Call[T]) -> None:
                self._watch.drop(call)
                if call.lost:
                    loop.cancel(call)

            call.then.append(ended)
            if then is not None:
                call.then.append(then)
            self._watch.add(call, None if seconds is None else seconds + GRACE_SECONDS)
            loop.begin(call)
        except BaseException:
            self._watch.drop(call)
            call.drop()
            raise
        return call

    def wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """What work gives: for an engine's start, since it holds the caller up.

        Args:
            work: runs on the loop.
            seconds: that it may take.

        Raises:
            LexicoError: what the work raised; it took too long; or there is no loop any more.
        """
        call, loop = self.begin(work), self._loop
        if loop is not None and (lost := loop.wait(call, seconds)) is not None:
            raise lost
        return call.result()

    def close(self, last: Coroutine[Any, Any, None] | None = None, seconds: float = 0.0) -> None:
        """Ends what runs, and the thread; of a shared one the last side does. May be called more
        than once where nobody shares it.

        Args:
            last: runs before; it ends within `seconds`.
            seconds: that are waited for it.
        """
        with self._lock:
            self._users -= 1
            over, loop, closed = self._users <= 0, self._loop, self._closed
            self._closed = closed or over
        if loop is None or closed or loop.ended:
            if last is not None:
                last.close()
            if over:
                self._end_calls()
            return
        for work, most in ((last, seconds), (self._shut_down() if over else None, _CLOSE_S)):
            if work is None:
                continue
            try:
                call = loop.start(work)
                lost = loop.wait(call, most)
                if lost is not None:
                    self._log.warning("not closed in order: %s", lost)
            except LexicoError as error:
                self._log.warning("not closed in order: %s", error)
        if over:
            loop.stop()
            self._end_calls()

    def _end_calls(self) -> None:
        """Of a loop that has ended, or that does not answer."""
        if left := self._watch.close(_CLOSE_S):
            self._log.warning("closed while threads are at the engine's memory: calls=%d", left)

    def _joined(self) -> bool:
        """Whether another side has it now."""
        with self._lock:
            self._users += not self.closed
            return not self.closed

    def _running(self) -> LoopThread:
        if self._loop is None:
            self._loop = LoopThread(self._name)
        return self._loop

    async def _shut_down(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()  # threads may use memory still
        await self.client.close()
        await asyncio.get_running_loop().shutdown_asyncgens()
