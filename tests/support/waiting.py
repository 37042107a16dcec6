"""Waiting for states. A test that waits for seconds is red on a busy machine; these are slower."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

import pytest

T = TypeVar("T")

PATIENCE_S: Final = float(os.environ.get("LEXICO_TEST_PATIENCE_S", "600"))
"""Ends a hang, and nothing else: the deadline of whatever must succeed, however busy the machine.
Below pytest's own timeout, which does not say what was waited for."""

_POLL_S: Final = 0.01
_LINGER_S: Final = 0.2


def wait_until(
    look: Callable[[], T],
    what: str,
    seen: Callable[[], object] | None = None,
    *,
    every_s: float = _POLL_S,
) -> T:
    """What `look` gives, once that is true.

    Args:
        look: asked again and again; it may fail the test by itself.
        what: the state, for the failure.
        seen: what there is instead, for the failure; None for what `look` gave last.
        every_s: seconds between two looks: more for one that is work, which takes from what it
            waits for.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            _fail(what, found if seen is None else seen())
        time.sleep(every_s)
    return found


async def until(look: Callable[[], T], what: str, seen: Callable[[], object] | None = None) -> T:
    """`wait_until` for a running event loop."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            _fail(what, found if seen is None else seen())
        await asyncio.sleep(_POLL_S)
    return found


def _fail(what: str, seen: object) -> NoReturn:
    pytest.fail(f"waited {PATIENCE_S:g} s for: {what}\nseen: {seen}")


async def settle() -> None:
    """Runs what is ready in this event loop, and what that makes ready, to the end. No time passes,
    so what waits for a thread, a socket or a timer goes on waiting.
    """
    for _ in range(100):
        await asyncio.sleep(0)


def skip_ahead(
    seconds: float = 2 * PATIENCE_S, loop: asyncio.AbstractEventLoop | None = None
) -> None:
    """Moves the clock of an event loop, the running one by default, so that its timers are due: a
    limit in time is reached at the state that a test wants, not after so many seconds. gRPC has a
    clock of its own. A loop that sleeps is not woken.
    """
    loop = loop or asyncio.get_running_loop()
    wall = type(loop).time
    ahead = loop.time() - wall(loop) + seconds
    loop.time = lambda: wall(loop) + ahead  # type: ignore[method-assign]


def linger() -> None:
    """A moment for what must not happen. Cut too short by a busy machine, it misses a defect
    and makes none up.
    """
    time.sleep(_LINGER_S)


async def lingering() -> None:
    """`linger` for a running event loop."""
    await asyncio.sleep(_LINGER_S)
