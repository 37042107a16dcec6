from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

from lexico_services.admission import ThreadCalls
from lexico_store.deadline import remaining_s, within
from tests.support.waiting import PATIENCE_S


def test_the_shortest_of_several_counts() -> None:
    assert remaining_s() == math.inf
    with within(PATIENCE_S):
        with within(2 * PATIENCE_S):
            assert remaining_s() <= PATIENCE_S
        with within(0):
            assert remaining_s() <= 0
        assert 0 < remaining_s() <= PATIENCE_S
    assert remaining_s() == math.inf


def test_store_calls_in_a_thread_have_their_callers_time() -> None:
    async def left() -> float:
        with ThreadPoolExecutor(1) as threads:
            return await ThreadCalls(threads, 1).run(remaining_s, PATIENCE_S)

    assert 0 < asyncio.run(left()) <= PATIENCE_S
