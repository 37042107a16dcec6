"""A server that hangs costs a node one slow call; then loads miss at once until it is back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lexico_client import AsyncClient
from lexico_client._circuit import Circuit
from lexico_proto import errors
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.client_server import Behaviour, refuse, serving
from tests.support.servers import address_of, embedded_server, stopped
from tests.support.waiting import PATIENCE_S, settle, until

SPEC = small_spec()
QUICK = replace(PATIENT, match=1.0, probe=PATIENCE_S)
"""No probe goes before a test says that it is time."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """A reload server: its process id and address."""
    file = tmp_path_factory.mktemp("reload") / "address.json"
    line = [sys.executable, "-m", "lexico_services", "reload-server", "--port", "0"]
    with embedded_server() as store:
        environment = {**os.environ, "LEXICO_STORE": store.url}
        process = subprocess.Popen([*line, "--address-file", str(file)], env=environment)
        try:
            yield process.pid, address_of(process, file)["reload"]
        finally:
            process.kill()
            process.wait()


def time_for_a_probe(client: AsyncClient) -> None:
    transport: Any = client._transport
    for circuit in transport._circuits.values():
        if circuit._breaker.open:
            circuit._breaker._probe_at = 0.0


async def missed(client: AsyncClient) -> errors.LexicoError | None:
    """Why a load brought nothing; None if nothing was wrong."""
    loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
    assert loaded.pages == 0
    return loaded.reason


async def test_a_server_that_hangs_costs_one_slow_call(
    server: tuple[int, str], tmp_path: Path
) -> None:
    pid, address = server
    async with AsyncClient(reload=address, dictionaries_dir=tmp_path, timeouts=QUICK) as client:
        assert await client.list_dictionaries(timeout=PATIENCE_S)
        with stopped(pid):
            assert type(await missed(client)) is errors.DeadlineExpired
            for _ in range(50):
                reason = await missed(client)
                assert type(reason) is errors.CircuitOpen
                assert "the reload server was silent" in reason.message
            with pytest.raises(errors.CircuitOpen):
                await client.list_dictionaries(timeout=PATIENCE_S)
            time_for_a_probe(client)
            for _ in range(50):  # the first of them begins a probe, and none waits for it long
                assert type(await missed(client)) is errors.CircuitOpen

        async def well() -> bool:
            time_for_a_probe(client)
            return await missed(client) is None

        while not await well():
            pass
        assert await client.list_dictionaries(timeout=PATIENCE_S)


@pytest.mark.parametrize("error", [errors.QuotaExceeded, errors.StoreUnavailable, errors.Busy])
async def test_what_a_server_answers_opens_nothing(
    tmp_path: Path, error: type[errors.LexicoError]
) -> None:
    """However long it takes."""
    behaviour = Behaviour()

    async def match(request: Any, context: Any) -> Any:
        await refuse(context, error("so it is"))

    behaviour.match = match
    async with (
        serving(behaviour) as address,
        AsyncClient(reload=address, dictionaries_dir=tmp_path, timeouts=PATIENT) as client,
    ):
        transport: Any = client._transport
        for circuit in transport._circuits.values():
            circuit._breaker._slow_s = 0.0
        for _ in range(5):
            assert type(await missed(client)) is error


async def test_an_offload_is_not_sent_to_a_server_that_hangs(
    server: tuple[int, str], tmp_path: Path
) -> None:
    pid, address = server
    timeouts = replace(QUICK, offload=1.0)
    async with AsyncClient(
        reload=address, offload=address, dictionaries_dir=tmp_path, timeouts=timeouts
    ) as client:
        source = views_of(SPEC, random_cache(SPEC, 4))
        with stopped(pid):
            with pytest.raises(errors.DeadlineExpired):
                await client.offload(SPEC, TOKENS, source)
            for _ in range(5):
                with pytest.raises(errors.CircuitOpen):
                    await client.offload(SPEC, TOKENS, source)


class Server:
    """A health check that ends when a test says so."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.asked = 0

    async def check(self, seconds: float) -> object:
        self.asked += 1
        await self.answer.wait()
        return b""


@pytest.fixture
async def hung() -> AsyncIterator[tuple[Circuit, Server]]:
    server = Server()
    circuit = Circuit("the reload server", 1.0, server.check)
    circuit._breaker.lost(2.0)
    circuit._breaker._probe_at = 0.0
    yield circuit, server
    await circuit.close()


async def test_one_probe_for_many_calls(hung: tuple[Circuit, Server]) -> None:
    circuit, server = hung
    calls = await asyncio.gather(*(circuit.enter() for _ in range(20)), return_exceptions=True)
    assert {type(each) for each in calls} == {errors.CircuitOpen}
    assert server.asked == 1
    server.answer.set()
    await until(lambda: not circuit._breaker.open, "a closed circuit")
    await circuit.enter()


async def test_a_server_that_is_back_is_called_by_the_call_that_asked(
    hung: tuple[Circuit, Server],
) -> None:
    circuit, server = hung
    server.answer.set()
    await circuit.enter()
    assert server.asked == 1


async def test_a_closed_client_leaves_no_probe(hung: tuple[Circuit, Server]) -> None:
    circuit, _ = hung
    with pytest.raises(errors.CircuitOpen):
        await circuit.enter()
    await circuit.close()
    await settle()
    assert len(asyncio.all_tasks()) == 1


def test_a_probe_that_its_loop_took_along_is_made_anew() -> None:
    circuits: list[Circuit] = []

    async def ask() -> int:
        server = Server()
        if not circuits:
            circuits.append(Circuit("the reload server", 1.0, server.check))
            circuits[0]._breaker.lost(2.0)
        circuits[0]._ask = server.check
        circuits[0]._breaker._probe_at = 0.0
        with pytest.raises(errors.CircuitOpen):
            await circuits[0].enter()
        return server.asked

    assert [asyncio.run(ask()) for _ in range(2)] == [1, 1]
