"""Get meets pages that somebody else broke in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import redis

from lexico_proto.v1 import reload_pb2 as pb
from lexico_store import EmbeddedServer, PageStore, keys, open_store
from tests.support.broken_pages import BREAKS
from tests.support.reload_pages import KEYS, SCOPE, fill
from tests.support.servers import PATIENT, embedded_server
from tests.support.services import Services, running_services
from tests.support.waiting import PATIENCE_S

PAGES = KEYS[:4]
GROUPS = 3
HARMLESS = ("frame too many", "number of frames is none")
"""To one who asks for three frames."""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with embedded_server() as server:
        yield server


@pytest.fixture
def store(server: EmbeddedServer) -> Iterator[PageStore]:
    with open_store(server.url, PATIENT) as store:
        for page in range(len(PAGES)):
            fill(store, page, GROUPS)
        yield store


def broken(server: EmbeddedServer, page: int, how: str) -> None:
    with redis.Redis.from_url(server.url) as raw:
        BREAKS[how](raw, keys.page(SCOPE, PAGES[page]))


async def get(
    services: Services, wanted: Sequence[bytes] = PAGES, groups: int = GROUPS
) -> list[pb.GetResponse]:
    request = pb.GetRequest(page_keys=wanted, groups=groups)
    return [part async for part in services.reload.Get(request, timeout=PATIENCE_S)]


async def present(services: Services) -> list[bool]:
    match = await services.reload.Match(pb.MatchRequest(page_keys=PAGES), timeout=PATIENCE_S)
    return list(match.present)


@pytest.mark.parametrize("how", [how for how in BREAKS if how not in HARMLESS])
async def test_a_broken_page_is_a_miss_and_is_removed(
    how: str, server: EmbeddedServer, store: PageStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it is said to be there, and missed, until it expires: nobody sends it anew."""
    broken(server, 1, how)
    async with running_services(store) as services:
        assert await present(services) == [True] * 4
        parts = await get(services)
        misses = [part.miss for part in parts if part.HasField("miss")]
        assert [(miss.page, miss.reason) for miss in misses] == [(1, pb.MISS_REASON_DAMAGED)]
        last = [p.frame.page for p in parts if p.HasField("frame") and p.frame.group == GROUPS - 1]
        assert last == [0]
        assert await present(services) == [True, False, True, True]
        fill(store, 1, GROUPS)
        assert not any(part.HasField("miss") for part in await get(services))
    assert "damaged pages=1" in caplog.text


async def test_two_broken_pages(server: EmbeddedServer, store: PageStore) -> None:
    broken(server, 3, "a string")
    broken(server, 1, "last frame missing")
    async with running_services(store) as services:
        for _ in range(2):
            await get(services)
            fill(store, 1, GROUPS)
        assert await present(services) == [True, True, True, False]


async def test_who_asks_for_too_many_groups_removes_nothing(
    server: EmbeddedServer, store: PageStore
) -> None:
    async with running_services(store) as services:
        parts = await get(services, groups=GROUPS + 1)
        misses = [part.miss for part in parts if part.HasField("miss")]
        assert [(miss.page, miss.reason) for miss in misses] == [(0, pb.MISS_REASON_ABSENT)]
        assert await present(services) == [True] * 4
