"""Event loops that run when a test has them, in its own thread, with a clock of the test's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from lexico_client._crew import Access
from lexico_client._loop_thread import Call
from lexico_client.engines._service import Service
from lexico_proto.errors import DeadlineExpired, InternalError

_TICK_S: Final = 0.002
_GRACE_S: Final = 2.0


class _AtOnce(ThreadPoolExecutor):
    """Does what it is given before it returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            future.set_exception(error)
        return future


class Loops:
    """All of a schedule's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frozen = set[asyncio.AbstractEventLoop]()
        """Those that are stuck."""
        self._alive: list[asyncio.AbstractEventLoop] = []
        self._dead: list[asyncio.AbstractEventLoop] = []

    def add(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.time = lambda: self.now  # type: ignore[method-assign]
        loop.set_default_executor(_AtOnce())
        self._alive.append(loop)
        return loop

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop's thread ends, whatever it is at."""
        self._alive.remove(loop)
        self._dead.append(loop)

    def run(self) -> None:
        """Until everything waits for the test."""
        self.now += _TICK_S
        while any(self._ran(loop) for loop in self._alive if loop not in self.frozen):
            pass

    def skip(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds
        self.run()

    def close(self) -> None:
        for loop in (*self._alive, *self._dead):
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(_rounds(loop))
            loop.close()

    def _ran(self, loop: Any) -> bool:
        due = loop._scheduled and loop._scheduled[0].when() <= self.now
        if not (loop._ready or due):
            return False
        loop.run_until_complete(_rounds(loop))
        return True


async def _rounds(loop: Any) -> None:
    await asyncio.sleep(0)
    while loop._ready:
        await asyncio.sleep(0)


class Stepped(Service):
    """The service of one rank, on one of these loops."""

    def __init__(self, client: Any, loops: Loops) -> None:
        self.client = client
        self.loops, self.loop = loops, loops.add()
        self.dead = False
        self.calls: dict[Call[Any], float] = {}
        """Calls that have not ended → when they end in any case."""

    def begin(
        self,
        work: Coroutine[Any, Any, Any],
        seconds: float | None = None,
        then: Callable[[Call[Any]], None] | None = None,
    ) -> Call[Any]:
        if self.dead:
            work.close()
            raise InternalError("the client's event loop has ended")
        call = Call(work, Access(), self._held)
        call.then.append(self._forget)
        if then is not None:
            call.then.append(then)
        due = math.inf if seconds is None else self.loops.now + seconds + _GRACE_S
        self.calls[call] = due
        self.loop.call_soon(call.begin)
        return call

    def watch(self) -> None:
        """Ends what is late, as `Watch` does."""
        for call, due in list(self.calls.items()):
            if due <= self.loops.now and call.end(DeadlineExpired("stuck")) and call.lost:
                self.loop.call_soon(call.cancel)

    def die(self) -> None:
        """The loop ends."""
        self.dead = True
        self.loops.end(self.loop)
        for call in list(self.calls):
            call.drop()
            call.end(InternalError("the client's event loop ended under the call"))

    def _forget(self, call: Call[Any]) -> None:
        del self.calls[call]

    def _held(self, call: Call[Any]) -> None:
        self.calls[call] = 0.0


@dataclass
class Gate:
    """Where something waits for the test."""

    name: str
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    failing: bool = False


class Gates:
    """Of a schedule, in the order in which they were come to."""

    def __init__(self) -> None:
        self.open: list[Gate] = []

    async def passed(self, name: str) -> bool:
        """Waits for the test to let it pass; whether it fails there."""
        gate = Gate(name)
        self.open.append(gate)
        try:
            await gate.waiting.wait()
        finally:
            if gate in self.open:
                self.open.remove(gate)
        return gate.failing

    def let(self, gate: Gate, *, failing: bool = False) -> None:
        """Lets what waits there pass, or fail."""
        self.open.remove(gate)
        gate.failing = failing
        gate.waiting.set()
