"""Work of an adapter that is done in turns, several at a time, each before a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from lexico_proto.errors import DeadlineExpired

T = TypeVar("T")

Left = Callable[[], float]
"""Seconds that are left, more than 0; raises DeadlineExpired once none are. What uses an engine's
memory asks before it begins: behind a deadline the memory may be another's."""


def until(seconds: float) -> Left:
    """Says how many of the seconds from now on are left, on the loop that runs."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    def left() -> float:
        """
        Raises:
            DeadlineExpired: none.
        """
        if (found := end - loop.time()) <= 0:
            raise DeadlineExpired(f"not begun within {seconds:g} s")
        return found

    return left


@asynccontextmanager
async def in_turn(turns: asyncio.Semaphore, left: Left) -> AsyncIterator[None]:
    """Waits for a turn, for as many seconds as are left, and has it for the block.

    Raises:
        DeadlineExpired: others had them all.
    """
    try:
        async with asyncio.timeout(left()):
            await turns.acquire()
    except TimeoutError as error:
        raise DeadlineExpired("others were before it all the time") from error
    try:
        yield
    finally:
        turns.release()


async def for_each(
    things: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]], at_a_time: int
) -> None:
    """Does the work for each, in order, several at a time."""
    left = iter(things)

    async def take() -> None:
        for thing in left:
            await work(thing)

    takers: list[Awaitable[None]] = [take() for _ in range(at_a_time)]
    await asyncio.gather(*takers)
