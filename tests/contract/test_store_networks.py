"""Connections that a network forgets, and stores that are slow, hang, restart or load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lexico_proto.errors import LexicoError, StoreUnavailable
from lexico_store import PageStore, StoreSettings, open_store
from lexico_store.deadline import within
from lexico_store.redis_pool import IDLE_S
from tests.contract.store_suite import TTL_S, key_of
from tests.support.proxy import Proxy
from tests.support.servers import (
    PASSWORD_IN_URL,
    PATIENT,
    RedisServer,
    answer_of,
    redis_server,
    stopped,
)
from tests.support.topologies import client_of
from tests.support.waiting import PATIENCE_S, wait_until

SCOPE = os.urandom(16)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def url_of(proxy: Proxy) -> str:
    return f"redis://:{PASSWORD_IN_URL}@127.0.0.1:{proxy.port}"


def warm(store: PageStore, connections: int) -> None:
    """That many connections are made and idle."""

    def enough() -> bool:
        asked = threads.map(lambda _: store.present(SCOPE, [key_of(0)] * 500), range(9))
        return len(list(asked)) == 9 and len(_idle(store)) >= connections

    with ThreadPoolExecutor(connections) as threads:
        wait_until(enough, f"{connections} connections")


def _idle(store: PageStore) -> list[Any]:
    return list(store._servers._pool._available_connections)  # type: ignore[attr-defined]


@pytest.mark.parametrize("call", ["present", "commit", "touch", "lease", "read_page", "dictionary"])
def test_forgotten_connections_cost_one_slow_call(
    proxy: Proxy, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, Callable[[PageStore], object]] = {
        "present": lambda store: store.present(SCOPE, [key_of(0)]),
        "commit": lambda store: store.commit(SCOPE, key_of(1), [bytes(9 << 20)], TTL_S),
        "touch": lambda store: store.touch(SCOPE, [key_of(2)], TTL_S),
        "lease": lambda store: store.lease(SCOPE, key_of(3), TTL_S, b"me"),
        "read_page": lambda store: store.read_page(SCOPE, key_of(4)),
        "dictionary": lambda store: store.list_dictionaries(SCOPE),
    }
    with open_store(url_of(proxy), PATIENT) as store:
        warm(store, 3)
        answer = calls[call](store)
        made = proxy.connections
        proxy.forget()
        with monkeypatch.context() as patch:  # a second for the first try, patience for the next
            patch.setattr("lexico_store.redis_exchange.FIRST_SHARE", 1 / PATIENCE_S)
            again = calls[call](store)
        assert again == answer or (call == "lease" and again)
        assert proxy.connections == made + 1
        for _ in range(3):  # the other two were closed with the first
            store.ping()
        assert proxy.connections == made + 1


def test_a_forgotten_connection_is_no_miss_within_the_callers_time(proxy: Proxy) -> None:
    """A Match has less time than the store. Half of it is enough to see that nothing comes."""
    with open_store(url_of(proxy), PATIENT) as store:
        store.commit(SCOPE, key_of(5), [b"x"], TTL_S)
        proxy.forget()
        with within(PATIENCE_S / 60):
            assert store.present(SCOPE, [key_of(5)]) == [True]


def test_a_connection_that_rested_long_is_not_trusted(proxy: Proxy) -> None:
    with open_store(url_of(proxy), PATIENT) as store:
        store.ping()
        proxy.forget()
        for connection in _idle(store):
            connection.used_at -= IDLE_S + 1
        assert store.present(SCOPE, [key_of(6)]) == [False]  # else after half of the patience
        assert proxy.connections == 2


def test_a_slow_store_is_waited_for(proxy: Proxy) -> None:
    """100 ms an answer: one round trip is one delay, and nothing is sent twice."""
    with open_store(url_of(proxy), PATIENT) as store:
        store.commit(SCOPE, key_of(7), [b"x"], TTL_S)
        proxy.delay_s = 0.1
        made = proxy.connections
        assert store.present(SCOPE, [key_of(7)] * 4000) == [True] * 4000
        assert store.read(SCOPE, [key_of(7)] * 60, 0) == [b"x"] * 60
        assert proxy.connections == made


def test_a_hung_server_ends_the_call_within_its_time(server: RedisServer) -> None:
    quick = StoreSettings(timeout_s=0.5, connect_timeout_s=0.5)
    with open_store(server.url, quick) as store, open_store(server.url, PATIENT) as patient:
        answer_of(store.ping)
        patient.ping()
        with stopped(server.pid):
            with pytest.raises(StoreUnavailable):
                store.ping()
            with pytest.raises(StoreUnavailable):
                store.lease(SCOPE, key_of(8), TTL_S, b"me")
            with within(0.2), pytest.raises(StoreUnavailable):
                patient.ping()
        # What it was asked meanwhile it does when it wakes; nobody else has the lease then.
        wait_until(
            lambda: patient.lease(SCOPE, key_of(8), TTL_S, b"me") is not None, "the owner's lease"
        )


def test_a_restart_costs_no_error(tmp_path: Path) -> None:
    with redis_server(tmp_path) as first, Proxy(first.port) as proxy:
        with open_store(url_of(proxy), PATIENT) as store:
            warm(store, 3)
            lease = store.lease(SCOPE, key_of(1), TTL_S)
            assert lease is not None
            first.process.kill()
            first.process.wait()
            (tmp_path / "second").mkdir()
            with redis_server(tmp_path / "second") as second:
                proxy.server_port = second.port
                assert store.present(SCOPE, [key_of(1)]) == [False]
                assert lease.release() is False
                store.commit(SCOPE, key_of(1), [b"x"], TTL_S)
                assert store.read_page(SCOPE, key_of(1)) == [b"x"]


def test_a_loading_server_is_unavailable_and_then_well(tmp_path: Path) -> None:
    options: tuple[str, ...] = ("--enable-debug-command", "yes", "--key-load-delay", "2000")
    options += ("--loading-process-events-interval-bytes", "1024")
    with redis_server(tmp_path, *options) as server, open_store(server.url, PATIENT) as store:
        for n in range(300):
            store.commit(SCOPE, key_of(n), [os.urandom(2000)], TTL_S)
        errors: list[LexicoError] = []
        with ThreadPoolExecutor(1) as threads:
            reloading = threads.submit(_reload, server)

            def well_after_loading() -> bool:
                try:
                    store.touch(SCOPE, [key_of(1)], TTL_S)
                except LexicoError as error:
                    errors.append(error)
                return reloading.done()

            wait_until(well_after_loading, "the end of loading")
            reloading.result()
        assert {type(error) for error in errors} == {StoreUnavailable}
        assert store.present(SCOPE, [key_of(n) for n in range(300)]) == [True] * 300


def _reload(server: RedisServer) -> None:
    with client_of(server) as client:
        client.execute_command("DEBUG", "RELOAD")
