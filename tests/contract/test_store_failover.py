"""Primaries that die, hang and hand slots over, while pages come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from lexico_proto.errors import LexicoError, StoreUnavailable
from lexico_store import PageStore, StoreSettings, keys, open_store
from lexico_store.lifetimes import now_us
from lexico_store.redis_exchange import Exchange, Unit
from lexico_store.redis_servers import Servers
from tests.contract.store_suite import TTL_S, key_of
from tests.support.servers import PASSWORD, PATIENT, RedisServer, stopped
from tests.support.topologies import Cluster, client_of, cluster, watched_servers
from tests.support.waiting import PATIENCE_S, wait_until

SCOPE = os.urandom(16)
PAGES = 24


@pytest.fixture(autouse=True)
def quick_first_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A primary that hangs is given up after a second; what takes over has all the time."""
    monkeypatch.setattr("lexico_store.redis_exchange.FIRST_SHARE", 1 / PATIENCE_S)


def frames_of(n: int) -> list[bytes]:
    """Frames that name their page: one under a wrong name is seen."""
    return [b"%d:%d" % (n, group) * 500 for group in range(3)]


class Load:
    """Commits, reads and leases in threads until the block ends."""

    def __init__(self, store: PageStore) -> None:
        self.errors: list[LexicoError] = []
        self.wrong: list[str] = []
        self.rounds = 0
        self._store = store
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(3)]

    def _work(self, worker: int) -> None:
        store, owner = self._store, b"worker%d" % worker
        while not self._ended.is_set():
            for n in range(worker, PAGES, 3):
                try:
                    with contextlib.ExitStack() as stack:
                        lease = store.lease(SCOPE, key_of(n), TTL_S, owner)
                        if lease is None:
                            self.wrong.append(f"lease of {n} is another's")
                            continue
                        stack.enter_context(lease)
                        store.commit(SCOPE, key_of(n), frames_of(n), TTL_S, began_us=now_us())
                    page = store.read_page(SCOPE, key_of(n))
                    if page not in (None, frames_of(n)):
                        self.wrong.append(f"page {n}")
                    store.present(SCOPE, [key_of(k) for k in range(PAGES)])
                except LexicoError as error:
                    self.errors.append(error)
            self.rounds += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def goes_on(self) -> None:
        """Until every worker has been round twice more."""
        target = self.rounds + 6
        wait_until(lambda: self.rounds >= target, "more rounds", lambda: self.errors[-1:])


def all_pages_are_their_own(store: PageStore) -> None:
    for n in range(PAGES):
        lease = store.lease(SCOPE, key_of(n), TTL_S, b"other")
        assert lease is not None, n
        with lease:
            store.commit(SCOPE, key_of(n), frames_of(n), TTL_S)
        assert store.read_page(SCOPE, key_of(n)) == frames_of(n)


@pytest.mark.parametrize("fault", ["killed", "hung", "asked"])
def test_failover_by_sentinels(tmp_path: Path, fault: str) -> None:
    """Waited out within the call's time: no call fails, none meets another's page."""
    with watched_servers(tmp_path) as watched, open_store(watched.url, PATIENT) as store:
        old = watched.primary()
        with Load(store) as load:
            load.goes_on()
            if fault == "asked":
                with watched.sentinel() as sentinel:
                    sentinel.sentinel_failover("pages")
            else:
                os.kill(old.pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            wait_until(lambda: watched.primary() is not old, "another primary")
            load.goes_on()
        assert load.wrong == []
        assert load.errors == []
        all_pages_are_their_own(store)
        with client_of(watched.primary()) as client:
            assert client.exists(keys.page(SCOPE, key_of(0)))
        os.kill(old.pid, signal.SIGCONT) if fault == "hung" else None


def test_a_failover_that_lasts_longer_than_a_call(tmp_path: Path) -> None:
    """The call ends in its time with an error of ours, and a later one is well again."""
    quick = StoreSettings(timeout_s=0.5, connect_timeout_s=0.5)
    with watched_servers(tmp_path) as watched, open_store(watched.url, quick) as store:
        old = watched.primary()
        (replica,) = (each for each in watched.servers if each is not old)
        with stopped(replica.pid):  # nobody can take over before the call has ended
            old.process.kill()
            old.process.wait()
            with pytest.raises(StoreUnavailable):
                store.commit(SCOPE, key_of(1), frames_of(1), TTL_S)
        wait_until(_succeeds(lambda: store.ping()), "a new primary")


def _succeeds(call: Callable[[], object]) -> Callable[[], bool]:
    def look() -> bool:
        with contextlib.suppress(LexicoError):
            call()
            return True
        return False

    return look


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), replicas=True) as made:
        yield made


def test_slots_that_move_under_load(nodes: Cluster) -> None:
    """Every slot of the load goes to another node and back: no call fails, none is lost."""
    with open_store(nodes.url, PATIENT) as store, Load(store) as load:
        load.goes_on()
        for n in range(0, PAGES, 8):
            name = keys.page(SCOPE, key_of(n))
            for _ in range(2):
                source = nodes.owner(name)
                target = next(s for s in nodes.servers[:3] if s is not source)
                migrate(nodes, name, source, target, load.goes_on)
        assert load.wrong == []
        assert load.errors == []
    with open_store(nodes.url, PATIENT) as store:
        all_pages_are_their_own(store)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "new"])
def test_a_page_is_committed_and_forgotten_in_a_slot_that_moves(
    nodes: Cluster, stored: bool
) -> None:
    key, began = key_of(PAGES + stored), now_us()
    name = keys.page(SCOPE, key)
    source = nodes.owner(name)
    target = next(s for s in nodes.servers[:3] if s is not source)
    with open_store(nodes.url, PATIENT) as store:
        if stored:
            store.commit(SCOPE, key, [b"former"], TTL_S)

        def meanwhile() -> None:
            for page in (b"one", b"another"):
                assert store.commit(SCOPE, key, [page], TTL_S, began_us=now_us())
                assert store.read_page(SCOPE, key) == [page]
            assert store.forget_pages(SCOPE, [key]) == [True]
            assert not store.commit(SCOPE, key, [b"late"], TTL_S, began_us=began)
            assert store.present(SCOPE, [key]) == [False]
            assert store.commit(SCOPE, key, [b"next"], TTL_S, began_us=now_us())

        migrate(nodes, name, source, target, meanwhile)
        assert store.read_page(SCOPE, key) == [b"next"]
    with client_of(target) as client:
        assert client.pttl(name) > TTL_S * 500, "not the life of one that may be forgotten"


def test_marks_are_set_before_pages_are_removed(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slot that moves, too: a commit in between would stay."""
    key = key_of(PAGES + 2)
    name = keys.page(SCOPE, key)
    source = nodes.owner(name)
    target = next(s for s in nodes.servers[:3] if s is not source)
    exchange = Servers.exchange
    sent: list[set[str]] = []

    def spy(self: Servers, pool: Any, units: dict[int, Unit], *, anew: bool = False) -> Exchange:
        sent.append({str(unit.commands[0][0]) for unit in units.values()})
        return exchange(self, pool, units, anew=anew)

    with open_store(nodes.url, PATIENT) as store:
        store.commit(SCOPE, key, [b"page"], TTL_S)

        def meanwhile() -> None:
            sent.clear()
            with monkeypatch.context() as patched:
                patched.setattr(Servers, "exchange", spy)
                store.forget_pages(SCOPE, [key])
            assert "SET" in sent[0]
            assert all("UNLINK" not in each for each in sent[: sent.index({"UNLINK"})])
            assert all("SET" not in each for each in sent[sent.index({"UNLINK"}) :])

        migrate(nodes, name, source, target, meanwhile)


def test_a_dictionary_in_a_slot_that_moves(nodes: Cluster) -> None:
    """Its set and the listing change in one MULTI, which Redis takes once the slot has arrived."""
    listing = keys.dictionary_listing(SCOPE)
    source = nodes.owner(listing)
    target = next(s for s in nodes.servers[:3] if s is not source)
    puts: list[Future[None]] = []
    with open_store(nodes.url, PATIENT) as store, ThreadPoolExecutor(1) as threads:

        def put() -> None:
            store.put_dictionary(SCOPE, b"new", b"of the set")
            assert store.get_dictionary(SCOPE, b"new") == b"of the set"
            assert store.list_dictionaries(SCOPE) == [b"new"]

        migrate(nodes, listing, source, target, lambda: puts.append(threads.submit(put)))
        for each in puts:
            each.result()


def migrate(
    nodes: Cluster,
    name: str,
    source: RedisServer,
    target: RedisServer,
    meanwhile: Callable[[], None],
) -> None:
    """Moves `name`'s slot as `redis-cli --cluster reshard` does, key by key."""
    slot = key_slot(name.encode())
    with client_of(source) as here, client_of(target) as there:
        ids = [client.execute_command("CLUSTER MYID").decode() for client in (here, there)]
        there.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        meanwhile()
        while names := here.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            here.execute_command(
                *("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE"),
                *("AUTH", PASSWORD, "KEYS", *names),
            )
        meanwhile()
        for client in (there, here):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])
    wait_until(lambda: nodes.owner(name) is target, "the slot's new owner")


def test_failover_in_a_cluster(nodes: Cluster) -> None:
    """A primary dies, its replica takes over: waited out within the call's time."""
    old = nodes.owner(keys.page(SCOPE, key_of(0)))
    with open_store(nodes.url, PATIENT) as store:
        with Load(store) as load:
            load.goes_on()
            os.kill(old.pid, signal.SIGKILL)
            load.goes_on()
        assert load.wrong == []
        assert load.errors == []
        all_pages_are_their_own(store)
