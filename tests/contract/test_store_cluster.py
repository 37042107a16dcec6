from __future__ import annotations

from collections.abc import Iterator

import pytest

from lexico_proto.errors import ConfigurationError
from lexico_store import PageStore, keys, open_store
from tests.contract.store_suite import SMALL_BYTES, TTL_S, StoreSuite, key_of
from tests.support.servers import PASSWORD_IN_URL, PATIENT
from tests.support.topologies import Cluster, bounded, client_of, cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


class TestClusterStore(StoreSuite):
    # Since 7.4 a node has a table for each slot and looks into one of them, where it has few keys.
    EVICTS_IN_ORDER = False

    @pytest.fixture
    def store(self, nodes: Cluster) -> Iterator[PageStore]:
        with open_store(nodes.url, PATIENT) as store:
            yield store

    @pytest.fixture
    def small_store(self, nodes: Cluster) -> Iterator[PageStore]:
        with bounded(nodes.servers, SMALL_BYTES), open_store(nodes.url, PATIENT) as store:
            yield store

    @pytest.fixture
    def crowd(self, nodes: Cluster, scope: bytes) -> list[bytes]:
        """Of one node, the one with the dictionary sets: each has a bound of its own."""
        node = nodes.owner(keys.dictionary_listing(scope))
        names = {n: keys.page(scope, key_of(n)) for n in range(150)}
        return [key_of(n) for n, name in names.items() if nodes.owner(name) is node][:16]

    def test_pages_lie_on_every_node(self, store: PageStore, nodes: Cluster, scope: bytes) -> None:
        for n in range(40):
            store.commit(scope, key_of(n), [b"x"], TTL_S)
        names = {keys.page(scope, key_of(n)) for n in range(40)}
        for server in nodes.servers:
            with client_of(server) as client:
                assert names & {name.decode() for name in client.keys("lx1:p:*")}

    def test_a_script_that_no_node_knows(
        self, store: PageStore, nodes: Cluster, scope: bytes
    ) -> None:
        leases = [store.lease(scope, key_of(n), TTL_S) for n in range(12)]
        for server in nodes.servers:
            with client_of(server) as client:
                client.script_flush()
        assert [lease is not None and lease.release() for lease in leases] == [True] * 12


def test_one_node_named_as_a_server_is_refused(nodes: Cluster) -> None:
    port = nodes.servers[0].port
    with open_store(f"redis://:{PASSWORD_IN_URL}@127.0.0.1:{port}", PATIENT) as store:
        with pytest.raises(ConfigurationError, match=r"redis\+cluster://"):
            store.present(b"s", [key_of(n) for n in range(20)])


def test_wrong_password(nodes: Cluster) -> None:
    with open_store(nodes.url.replace(PASSWORD_IN_URL, "wrong"), PATIENT) as store:
        with pytest.raises(ConfigurationError, match="password"):
            store.ping()
