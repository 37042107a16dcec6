from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lexico_proto.errors import StoreUnavailable
from lexico_store import EmbeddedServer, PageStore, open_store
from tests.contract.redis_suite import RedisSuite, kill_in_commit
from tests.contract.store_suite import SMALL_BYTES, TTL_S, key_of
from tests.support.servers import PATIENT, embedded_server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with embedded_server() as server:
        yield server


class TestEmbeddedStore(RedisSuite):
    @pytest.fixture
    def url(self, server: EmbeddedServer) -> str:
        return server.url

    @pytest.fixture
    def server_pid(self, server: EmbeddedServer) -> int:
        return server.pid

    @pytest.fixture
    def small_store(self) -> Iterator[PageStore]:
        with open_store(f"embedded://?server=wheel&maxmemory={SMALL_BYTES}", PATIENT) as store:
            yield store


def test_killed_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    scope = os.urandom(16)
    with embedded_server(tmp_path / "s") as server, open_store(server.url, PATIENT) as store:
        store.commit(scope, key_of(1), [b"x"], TTL_S)
        raised = kill_in_commit(store, server.pid, scope, key_of(2))
        assert [type(error) for error in raised] == [StoreUnavailable]
        with pytest.raises(StoreUnavailable):
            store.present(scope, [key_of(2)])
        server.close()
        with embedded_server(tmp_path / "s"):
            # The same store goes on with the new server, which kept nothing.
            assert store.present(scope, [key_of(1), key_of(2)]) == [False, False]


def test_closing_the_store_ends_its_server(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    with open_store(f"embedded://{directory}?server=wheel", PATIENT) as store:
        store.ping()
        assert (directory / "store.sock").is_socket()
    assert not (directory / "store.sock").exists()
