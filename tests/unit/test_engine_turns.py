"""Work that takes turns: deadlines, and what begins behind them."""

from __future__ import annotations

import asyncio

import pytest

from lexico_client.engines._turns import for_each, in_turn, until
from lexico_proto.errors import DeadlineExpired
from tests.support.waiting import PATIENCE_S, skip_ahead


async def test_behind_a_deadline_nothing_begins() -> None:
    """A free turn is none then."""
    left, turns = until(0.001), asyncio.Semaphore(1)
    skip_ahead()
    with pytest.raises(DeadlineExpired, match=r"not begun within 0\.001 s"):
        left()
    with pytest.raises(DeadlineExpired):
        async with in_turn(turns, left):
            pytest.fail("it began")
    assert not turns.locked()
    assert 0 < until(PATIENCE_S)() <= PATIENCE_S


async def test_a_turn_that_does_not_come_in_time() -> None:
    turns = asyncio.Semaphore(1)
    async with in_turn(turns, until(PATIENCE_S)):
        with pytest.raises(DeadlineExpired, match="others were before it"):
            async with in_turn(turns, until(0.001)):
                pytest.fail("it began")
    assert not turns.locked()


async def test_several_at_a_time_in_order() -> None:
    begun, most, running = list[int](), 0, 0

    async def work(number: int) -> None:
        nonlocal most, running
        begun.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await for_each(range(7), work, 3)
    assert (begun, most) == (list(range(7)), 3)
