"""An async client and more than one event loop, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from lexico_client import AsyncClient
from lexico_client._runner import Runner
from lexico_proto import errors
from tests.support.client_fixtures import (
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.services import running_services

SPEC = small_spec()
CACHE = random_cache(SPEC, 4)


@pytest.fixture
def addresses() -> Iterator[tuple[str, str]]:
    """Of services on a thread of their own: the loops of the tests come and go."""
    runner, services = Runner("services"), running_services()
    running = runner.run(services.__aenter__(), 60)
    yield running.reload_address, running.offload_address
    runner.run(services.__aexit__(None, None, None), 60)
    runner.close(partial(asyncio.sleep, 0))


def test_one_loop_after_another(addresses: tuple[str, str], tmp_path: Path) -> None:
    client = AsyncClient(reload=addresses[0], offload=addresses[1], dictionaries_dir=tmp_path)
    dictionary = small_dictionary()

    async def first() -> bool:
        await client.offload(SPEC, TOKENS, views_of(SPEC, CACHE))
        return await client.register_dictionary(dictionary)

    async def load() -> int:
        landing = Landing(SPEC)
        loaded = await client.load(SPEC, TOKENS, landing)
        assert torch.equal(landing.cache, CACHE)
        return loaded.pages

    assert asyncio.run(first())
    assert [asyncio.run(load()) for _ in range(3)] == [4] * 3
    assert asyncio.run(client.fetch_dictionary(dictionary.digest)).digest == dictionary.digest
    asyncio.run(client.close())
    asyncio.run(client.close())


def test_a_fetch_that_its_loop_took_along(addresses: tuple[str, str], tmp_path: Path) -> None:
    dictionary = small_dictionary()

    async def register() -> None:
        async with AsyncClient(reload=addresses[0], dictionaries_dir=tmp_path / "a") as other:
            await other.register_dictionary(dictionary)

    client = AsyncClient(reload=addresses[0], dictionaries_dir=tmp_path / "b")

    async def give_up() -> None:
        task = asyncio.create_task(client.fetch_dictionary(dictionary.digest))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(register())
    asyncio.run(give_up())
    assert asyncio.run(client.fetch_dictionary(dictionary.digest)).digest == dictionary.digest
    asyncio.run(client.close())


def test_a_second_loop_beside_the_first_is_refused(
    addresses: tuple[str, str], tmp_path: Path
) -> None:
    client = AsyncClient(reload=addresses[0], offload=addresses[1], dictionaries_dir=tmp_path)

    async def load() -> tuple[int, object]:
        loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
        return loaded.pages, type(loaded.reason)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.offload(SPEC, TOKENS, views_of(SPEC, CACHE)))
        assert second.run(load()) == (0, errors.Unsupported)
        with pytest.raises(errors.Unsupported, match="another event loop"):
            second.run(client.match(SPEC, TOKENS))
        with pytest.raises(errors.Unsupported, match="another event loop"):
            second.run(client.offload(SPEC, TOKENS, views_of(SPEC, CACHE)))
        assert first.run(load()) == (4, type(None))
        first.run(client.close())
