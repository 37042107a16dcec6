"""The client of an adapter: the sides of an engine in one process share it, the last ends it."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines._service import Service
from lexico_proto.errors import Cancelled, LexicoError
from tests.support.waiting import PATIENCE_S, linger, wait_until

LOG = logging.getLogger(__name__)


def made() -> Service:
    return Service(AsyncClient(transport=InMemoryTransport()), "test", LOG)


async def answered() -> int:
    return 1


def test_sides_of_one_engine_share_and_others_do_not() -> None:
    one, two = Service.shared("engine", made), Service.shared("engine", made)
    other = Service.shared("another", made)
    assert one is two
    assert one is not other
    for service in (one, two, other):
        service.close()


def test_the_side_that_ends_first_leaves_the_other_its_calls() -> None:
    service = Service.shared("engine", made)
    assert Service.shared("engine", made) is service
    seen = list[str]()

    async def last() -> None:
        seen.append("drained")

    running = service.begin(asyncio.Event().wait())
    service.close(last(), PATIENCE_S)
    assert seen == ["drained"]
    assert not service.closed
    assert service.wait(answered(), PATIENCE_S) == 1
    service.close()
    assert service.closed
    wait_until(lambda: running.finished, "the call to be ended")
    with pytest.raises(Cancelled):
        running.result()
    work = answered()
    with pytest.raises(LexicoError):
        service.begin(work)
    work.close()
    service.close()  # once more: nothing


def test_threads_that_use_memory_have_ended_before_the_client_is_closed() -> None:
    """What is cancelled leaves its thread at the engine's memory."""
    service, order = made(), list[str]()
    cancelled = threading.Event()
    close = service.client.close

    def use() -> None:
        assert cancelled.wait(PATIENCE_S)
        linger()  # who does not wait for this closes the client meanwhile
        order.append("thread")

    async def work() -> None:
        try:
            await asyncio.to_thread(use)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def closing() -> None:
        order.append("client")
        await close()

    service.client.close = closing  # type: ignore[method-assign]
    service.begin(work())
    service.wait(answered(), PATIENCE_S)
    service.close()
    assert order == ["thread", "client"]


def test_an_engine_that_starts_again_gets_a_new_one() -> None:
    first = Service.shared("engine", made)
    first.begin(answered())
    first.close()
    second = Service.shared("engine", made)
    assert second is not first
    assert second.wait(answered(), PATIENCE_S) == 1
    second.close()
