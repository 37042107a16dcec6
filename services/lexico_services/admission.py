"""Bounds on bytes, calls and time: what is in flight is bounded before it is read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from lexico_proto.errors import Busy, DeadlineExpired, InvalidInput
from lexico_store.deadline import within

T = TypeVar("T")


class ByteBudget:
    """Hands out bytes up to a limit, at once or to those who wait in turn. For one event loop."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: bytes that may be out at a time.
        """
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._waiting: deque[asyncio.Event] = deque()

    def take(self, unit: int, most: int) -> int:
        """Takes as many units as fit, at most `most`; give them back with `give_back`.

        Args:
            unit: bytes of one page.
            most: pages wanted.

        Returns:
            Units taken, at least 1.

        Raises:
            Busy: not even one fits now.
            InvalidInput: not even one would ever fit.
        """
        if unit > self.limit:
            raise InvalidInput(
                f"a page of {unit} bytes is over the server's max_inflight_bytes={self.limit}: "
                "use fewer page_tokens, or raise it"
            )
        units = min(most, (self.limit - self.used) // unit)
        if units < 1:
            raise Busy(
                f"{self.used} of {self.limit} bytes are in flight: try again later, or recompute"
            )
        self.used += units * unit
        self.peak = max(self.peak, self.used)
        return units

    def give_back(self, size: int) -> None:
        """Returns bytes that were taken."""
        self.used -= size
        self._wake()

    def take_spare(self, unit: int, most: int) -> int:
        """As `take`, but 0 where it has none to spare: none is free, or someone waits for them."""
        if self._waiting or self.limit - self.used < unit:
            return 0
        return self.take(unit, most)

    async def wait(self, unit: int, most: int) -> int:
        """As `take`, but waits its turn until one unit is free.

        Who waits must hold nothing of the budget, or two could wait for each other.

        Raises:
            InvalidInput: not even one would ever fit.
        """
        turn = asyncio.Event()
        self._waiting.append(turn)
        try:
            while unit <= self.limit and (
                self._waiting[0] is not turn or self.limit - self.used < unit
            ):
                turn.clear()
                await turn.wait()
            return self.take(unit, most)
        finally:
            self._waiting.remove(turn)
            self._wake()

    def _wake(self) -> None:
        if self._waiting:
            self._waiting[0].set()


class Slots:
    """A bound on calls under way. For one event loop."""

    def __init__(self, limit: int, what: str) -> None:
        """
        Args:
            limit: calls at a time.
            what: what they are, for the message.
        """
        self._limit = limit
        self._what = what
        self._used = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds one slot.

        Raises:
            Busy: none is free.
        """
        self.take()
        try:
            yield
        finally:
            self.give_back()

    @property
    def used(self) -> int:
        """Calls under way."""
        return self._used

    @property
    def limit(self) -> int:
        """Calls at a time."""
        return self._limit

    def take(self) -> None:
        """Takes one slot; give it back with `give_back`.

        Raises:
            Busy: none is free.
        """
        if self._used >= self._limit:
            raise Busy(f"{self._limit} {self._what} are under way: try again later, or recompute")
        self._used += 1

    def give_back(self) -> None:
        """Returns a slot that was taken."""
        self._used -= 1


class ThreadCalls:
    """Blocking work in threads, waited for up to a time. For one event loop."""

    def __init__(self, threads: Executor, limit: int) -> None:
        """
        Args:
            threads: where the work blocks.
            limit: work that runs or waits for a thread.
        """
        self._threads = threads
        self._slots = Slots(limit, "calls")

    @property
    def used(self) -> int:
        """Work that runs or waits."""
        return self._slots.used

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """What `work` returns or raises.

        A thread cannot be stopped: its slot is taken until it is done, so that what waits for
        threads stays bounded however often callers give up. Work that did not begin never does, and
        the store calls of work that did are over with the caller's time.

        Raises:
            Busy: too many calls are under way.
            DeadlineExpired: it took over `timeout_s` seconds.
        """
        given_up = threading.Event()
        until = time.monotonic() + timeout_s

        def unless_given_up() -> T:
            if given_up.is_set():
                raise DeadlineExpired("nobody waits for this call any more")
            with within(until - time.monotonic()):
                return work()

        self._slots.take()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, unless_given_up)
        except BaseException:
            self._slots.give_back()
            raise
        future.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait([future], timeout=timeout_s)
        finally:
            if not future.done():
                given_up.set()
        if not done:
            raise DeadlineExpired(f"the page store did not answer within {timeout_s:g} s")
        return future.result()

    def _ended(self, future: asyncio.Future[T]) -> None:
        self._slots.give_back()
        _ = future.cancelled() or future.exception()  # retrieved, though nobody may wait for it


async def to_the_end(threads: Executor, work: Callable[[], T]) -> T:
    """What `work` returns or raises in a thread; a cancelled caller too waits until it is done.

    So what the caller holds for the work, a slot or bytes, is held as long as the work needs it.
    """
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        _ = future.cancelled() or future.exception()
        raise


async def in_time(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """What `work` returns or raises.

    Raises:
        DeadlineExpired: it took over `seconds`.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await work
    except TimeoutError:
        if not timer.expired():
            raise
    # Not within `except`: the error would keep the frames of `work`, and the buffers that they
    # name, alive until a caller that does not read has taken its status.
    raise DeadlineExpired(f"the stream took over {seconds:g} s")


async def write_to(context: grpc.aio.ServicerContext[Any, T], message: T) -> None:
    """Writes one message of a stream; where the peer is gone the call ends as a cancelled one.

    gRPC takes that for a matter of course where it drives a generator, but raises it to those who
    write by themselves.
    """
    try:
        await context.write(message)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
