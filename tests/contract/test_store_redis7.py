from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lexico_proto.errors import ConfigurationError, StoreUnavailable
from lexico_store import PageStore, open_store
from tests.contract.redis_suite import RedisSuite, kill_in_commit
from tests.contract.store_suite import SMALL_BYTES, key_of
from tests.support.servers import PATIENT, RedisServer, free_port, redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestRedis7Store(RedisSuite):
    @pytest.fixture
    def url(self, server: RedisServer) -> str:
        return server.url

    @pytest.fixture
    def server_pid(self, server: RedisServer) -> int:
        return server.pid

    @pytest.fixture
    def small_store(self, tmp_path: Path) -> Iterator[PageStore]:
        bound = ("--maxmemory", str(SMALL_BYTES), "--maxmemory-policy", "volatile-ttl")
        with redis_server(tmp_path, *bound) as server, open_store(server.url, PATIENT) as store:
            yield store

    @pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
    def test_wrong_password(self, server: RedisServer, login: str) -> None:
        with open_store(f"redis://{login}127.0.0.1:{server.port}", PATIENT) as store:
            with pytest.raises(ConfigurationError, match="password") as caught:
                store.ping()
        assert "wrong" not in str(caught.value)

    def test_no_such_database(self, url: str) -> None:
        with open_store(url.removesuffix("/0") + "/99", PATIENT) as store:
            with pytest.raises(ConfigurationError, match="database"):
                store.ping()


def test_killed_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, open_store(server.url, PATIENT) as store:
        raised = kill_in_commit(store, server.pid, os.urandom(16), key_of(2))
    assert [type(error) for error in raised] == [StoreUnavailable]


def test_server_not_there() -> None:
    with open_store(f"redis://127.0.0.1:{free_port()}") as store:
        with pytest.raises(StoreUnavailable):
            store.ping()
