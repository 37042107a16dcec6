"""Servers that hang: one slow call each, and the others fail at once until one finds it back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lexico_proto.errors import LexicoError, StoreUnavailable
from lexico_store import PageStore, StoreSettings, keys, open_store
from lexico_store.redis_errors import ServerSilent
from tests.contract.store_suite import TTL_S, key_of
from tests.support.servers import RedisServer, redis_server, stopped
from tests.support.topologies import cluster, watched_servers
from tests.support.waiting import PATIENCE_S, wait_until

SCOPE = os.urandom(16)
QUICK = StoreSettings(timeout_s=1.0, connect_timeout_s=1.0, probe_every_s=PATIENCE_S)
"""No probe goes before a test says that it is time."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def at_once(call: Callable[[], object]) -> bool:
    """Whether a call fails without its server being asked."""
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return isinstance(caught.value.__cause__, ServerSilent)


def stored(store: PageStore, key: bytes) -> None:
    store.commit(SCOPE, key, [b"x"], TTL_S)


def page_of(store: PageStore, key: bytes, but: int = 0) -> list[bytes] | None:
    """What is read of a server that is there. A busy machine may take longer than a call may."""
    read: list[list[bytes] | None] = []
    ask = lambda: read.append(store.read_page(SCOPE, key))  # noqa: E731
    wait_until(lambda: is_well(store, ask, but), "an answer in time")
    return read[0]


def is_well(store: PageStore, call: Callable[[], object], but: int = 0) -> bool:
    """Whether a call succeeds, as a probe where there is need of one; not of the port `but`."""
    time_for_a_probe(store, but)
    with suppress(LexicoError):
        call()
        return True
    return False


def time_for_a_probe(store: PageStore, but: int = 0) -> None:
    servers: Any = store._servers  # type: ignore[attr-defined]
    of_pools = (
        breaker
        for pool, breaker in servers._breakers.items()
        if not but or pool.connection_kwargs.get("port") != but
    )
    for breaker in (*of_pools, servers.directory):
        if breaker.open:
            breaker._probe_at = 0.0


def test_a_hung_server_costs_one_slow_call(server: RedisServer) -> None:
    with open_store(server.url, QUICK) as store:
        wait_until(lambda: is_well(store, lambda: stored(store, key_of(1))), "a page")
        with stopped(server.pid):
            assert not at_once(store.ping)
            for _ in range(50):
                assert at_once(lambda: store.read_page(SCOPE, key_of(1)))
                assert at_once(lambda: store.commit(SCOPE, key_of(2), [b"y"], TTL_S))
            time_for_a_probe(store)
            assert not at_once(store.ping)  # the probe, which is slow
            for _ in range(50):
                assert at_once(store.ping)
        assert at_once(store.ping)  # it is back, and nobody was to find out yet
        wait_until(lambda: is_well(store, store.ping), "an answer to a probe")
        assert page_of(store, key_of(1)) == [b"x"]


def test_a_breaker_can_be_left_out(server: RedisServer) -> None:
    never = StoreSettings(timeout_s=0.1, connect_timeout_s=0.1, probe_every_s=0)
    with open_store(server.url, never) as store, stopped(server.pid):
        for _ in range(3):
            assert not at_once(store.ping)


def test_a_server_that_refuses_connections_is_asked_by_each_call(tmp_path: Path) -> None:
    """That costs nothing, and the first call after a restart goes through."""
    with redis_server(tmp_path) as server, open_store(server.url, QUICK) as store:
        wait_until(lambda: is_well(store, store.ping), "an answer")
        server.process.kill()
        server.process.wait()
        for _ in range(20):
            assert not at_once(store.ping)


def test_a_shard_that_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    options = ("--cluster-require-full-coverage", "no")
    with cluster(tmp_path, *options) as nodes, open_store(nodes.url, QUICK) as store:
        pages = {nodes.owner(keys.page(SCOPE, key_of(n))).port: key_of(n) for n in range(64)}
        hung, *others = nodes.servers[:3]
        for key in pages.values():
            wait_until(partial(is_well, store, partial(stored, store, key)), "a page")
        with stopped(hung.pid):
            lost = pages[hung.port]
            wait_until(lambda: at_once(lambda: store.read_page(SCOPE, lost)), "an open circuit")
            for _ in range(20):
                assert at_once(lambda: store.read_page(SCOPE, lost))
                for each in others:
                    assert page_of(store, pages[each.port], hung.port) == [b"x"]
        back = lambda: store.read_page(SCOPE, lost)  # noqa: E731
        wait_until(lambda: is_well(store, back), "the shard's return")


@pytest.mark.parametrize("hangs", [True, False], ids=["hung", "killed"])
def test_a_cluster_that_is_gone_costs_few_slow_calls(tmp_path: Path, hangs: bool) -> None:
    with cluster(tmp_path) as nodes, open_store(nodes.url, QUICK) as store:
        wait_until(lambda: is_well(store, store.ping), "an answer")
        for each in nodes.servers:
            if hangs:
                os.kill(each.pid, signal.SIGSTOP)
            else:
                each.process.kill()
                each.process.wait()
        ask = lambda: store.read_page(SCOPE, key_of(1))  # noqa: E731
        wait_until(lambda: at_once(ask), "an open circuit")
        assert at_once(ask)


def test_a_primary_that_nobody_replaces_yet_is_waited_for_and_then_not(tmp_path: Path) -> None:
    """A failover that is shorter than a call's time costs no error; then calls fail at once, until
    the probe that finds the new primary."""
    with watched_servers(tmp_path) as watched, open_store(watched.url, QUICK) as store:
        wait_until(lambda: is_well(store, store.ping), "an answer")
        old = watched.primary()
        with stopped(old.pid):
            wait_until(lambda: at_once(store.ping), "an open circuit")
            wait_until(lambda: watched.primary() is not old, "another primary")
            wait_until(lambda: is_well(store, store.ping), "the new primary's answer")
