"""One budget of time for a whole operation, and the one retry that fits into it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from lexico_client._settings import check_seconds
from lexico_proto.errors import (
    CircuitOpen,
    DeadlineExpired,
    EncoderLost,
    LexicoError,
    Unavailable,
)
from lexico_proto.metrics import Counter

T = TypeVar("T")

BACKOFF_SECONDS: Final = 0.05
"""Mean pause before the retry."""


class Budget:
    """Seconds that an operation may still take; they run from when it is built, in a running
    loop."""

    def __init__(self, what: str, seconds: float, retries: Counter | None = None) -> None:
        self.what = what
        self.retries = retries or Counter()
        """Counts what is tried again within it."""
        self._seconds = seconds
        self.end = asyncio.get_running_loop().time() + seconds
        """Time of the event loop at which they are over."""

    def left(self) -> float:
        """Seconds left.

        Raises:
            DeadlineExpired: none.
        """
        left = self.end - asyncio.get_running_loop().time()
        if left <= 0:
            raise self._expired()
        return left

    @asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Ends what runs inside when the budget does.

        Raises:
            DeadlineExpired: it did.
        """
        try:
            async with asyncio.timeout_at(self.end) as scope:
                yield
        except TimeoutError as error:
            if not scope.expired():  # what runs inside, a caller's source among it, raised its own
                raise
            raise self._expired() from error

    def _expired(self) -> DeadlineExpired:
        return DeadlineExpired(f"{self.what}: no answer within {self._seconds:g} s")


def left_of(timeout: float | None, usual: float) -> Callable[[], float]:
    """Says how many seconds are left of a call that begins now, more than 0. On any thread.

    Args:
        timeout: seconds; None for the usual ones.

    Raises:
        ConfigurationError: a timeout that is no time.
    """
    seconds = usual if timeout is None else check_seconds("timeout", timeout)
    end = time.monotonic() + seconds
    return lambda: max(0.001, end - time.monotonic())


class Clock:
    """Seconds since it was made, and since the last lap."""

    def __init__(self) -> None:
        self._start = self._lap = time.perf_counter()

    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._start

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds


def may_retry(error: LexicoError) -> bool:
    """Whether the same call may go through a moment later.

    `Unavailable`: a replica went away, and another may be there. Not `EncoderLost`: the service has
    tried the page twice already. Not `CircuitOpen`: the next call would not be made either.
    """
    return isinstance(error, Unavailable) and not isinstance(error, EncoderLost | CircuitOpen)


async def pause(budget: Budget) -> bool:
    """Waits before a retry; False where the budget has no room for one."""
    seconds = BACKOFF_SECONDS * (0.5 + random.random())
    if budget.left() <= 2 * seconds:
        return False
    await asyncio.sleep(seconds)
    budget.retries.add()
    return True


async def with_retry(budget: Budget, attempt: Callable[[], Awaitable[T]]) -> T:
    """The attempt's result, made once more where the service was not there.

    Args:
        budget: time for both.
        attempt: one idempotent call.
    """
    try:
        return await attempt()
    except LexicoError as error:
        if not may_retry(error) or not await pause(budget):
            raise
    return await attempt()
