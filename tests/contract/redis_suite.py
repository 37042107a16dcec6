"""What a store in a real server must do beyond `StoreSuite`: keep its layout, and fail well."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from lexico_proto.errors import Busy, InternalError, StoreUnavailable
from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_store import PageStore, StoreSettings, keys, open_store
from lexico_store.lifetimes import LINGER_MS, now_us
from tests.contract.store_suite import TTL_S, StoreSuite, key_of
from tests.support.broken_pages import BREAKS
from tests.support.leases import held_leases
from tests.support.servers import PATIENT, answer_of, stopped, unread_bytes
from tests.support.waiting import PATIENCE_S, wait_until

QUICK = StoreSettings(timeout_s=0.3, connect_timeout_s=0.3)
BIG = [b"x" * (1 << 20)] * 32
"""A page that no socket buffer holds: its sender is stopped in the middle."""


class RedisSuite(StoreSuite):
    """Subclasses give `url` and `server_pid` of a server that all their tests share."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def server_pid(self) -> int:
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Iterator[PageStore]:
        with open_store(url, PATIENT) as store:
            yield store

    @pytest.fixture
    def raw(self, url: str) -> Iterator[Any]:
        """A plain redis-py client of the same server."""
        with redis.Redis.from_url(url) as client:
            yield client

    @contextlib.contextmanager
    def config(self, raw: Any, name: str, value: str) -> Iterator[None]:
        former = raw.config_get(name)[name]
        raw.config_set(name, value)
        try:
            yield
        finally:
            raw.config_set(name, former)

    def test_what_the_servers_say_of_themselves(self, store: PageStore, scope: bytes) -> None:
        before = store.usage()
        assert before is not None
        assert store.commit(scope, key_of(1), [b"x" * (1 << 20)], 0.05)

        def expiries() -> int:
            now = store.usage()
            return now.expiries if now is not None else 0

        wait_until(lambda: expiries() > before.expiries, "a page that expired is counted")
        after = store.usage()
        assert after is not None
        assert after.used_bytes > 0
        assert after.connections >= 1
        assert after.max_bytes >= 0
        assert after.evictions >= before.evictions

    def test_layout(self, store: PageStore, raw: Any, scope: bytes) -> None:
        raw.flushall()
        store.commit(scope, key_of(1), [b"f0", b"f1"], TTL_S)
        assert store.lease(scope, key_of(1), TTL_S)
        store.put_dictionary(scope, b"dd", b"data")
        page, lease = keys.page(scope, key_of(1)), keys.lease(scope, key_of(1))
        dictionary, listing = keys.dictionary(scope, b"dd"), keys.dictionary_listing(scope)
        assert raw.hgetall(page) == {b"g0": b"f0", b"g1": b"f1", b"m": b"2"}
        assert 0 < raw.pttl(page) <= TTL_S * 1000
        assert raw.pttl(lease) > LINGER_MS - TTL_S * 1000, "a full server would let it go first"
        assert raw.ttl(dictionary) == raw.ttl(listing) == -1
        everything = {name.decode() for name in raw.keys("*")}
        assert everything == {page, lease, dictionary, listing}
        assert not any(scope.hex() in name for name in everything)

    @pytest.mark.parametrize("field", ["c0", "c1", "n", "size"])
    def test_dictionary_without_a_part_is_missing(
        self, store: PageStore, raw: Any, scope: bytes, field: str
    ) -> None:
        store.put_dictionary(scope, b"d", b"x" * (1 << 20) + b"y")
        raw.hdel(keys.dictionary(scope, b"d"), field)
        assert store.get_dictionary(scope, b"d") is None

    def test_dictionary_with_a_short_part_is_missing(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        store.put_dictionary(scope, b"d", b"x" * (1 << 20) + b"y")
        raw.hset(keys.dictionary(scope, b"d"), "c0", b"x")
        assert store.get_dictionary(scope, b"d") is None

    def test_page_without_a_group_is_missing(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        store.commit(scope, key_of(1), [b"a", b"b", b"c"], TTL_S)
        raw.hdel(keys.page(scope, key_of(1)), "g1")
        assert store.read_page(scope, key_of(1)) is None

    @pytest.mark.parametrize("noted", [b"2", b"4", b"9" * 12, b"9" * 9000, b"\xff"])
    def test_a_page_with_another_number_of_frames_is_missing(
        self, store: PageStore, raw: Any, scope: bytes, noted: bytes
    ) -> None:
        """However large: it is no length of anything until it is the right one."""
        store.commit(scope, key_of(1), [b"a", b"b", b"c"], TTL_S)
        raw.hset(keys.page(scope, key_of(1)), "m", noted)
        assert store.read_page(scope, key_of(1)) is None
        assert store.read(scope, [key_of(1)], 2) == [b"c"]

    @pytest.mark.parametrize("how", BREAKS)
    def test_broken_pages_are_removed(
        self, store: PageStore, raw: Any, scope: bytes, how: str
    ) -> None:
        pages = [key_of(n) for n in range(3)]
        for key in pages:
            store.commit(scope, key, [b"a", b"bb", b"ccc"], TTL_S)
        BREAKS[how](raw, keys.page(scope, pages[1]))
        lengths = store.frame_bytes(scope, pages, range(3))
        assert [group[::2] for group in lengths] == [[1, 1], [2, 2], [3, 3]]
        assert store.discard_broken(scope, pages) == [False, True, False]
        assert store.present(scope, pages) == [True, False, True]
        assert store.commit(scope, pages[1], [b"anew"], TTL_S)
        assert store.discard_broken(scope, pages) == [False] * 3

    def test_a_frame_that_is_too_long_is_broken(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        name = keys.page(scope, key_of(1))
        raw.hset(name, mapping={"g0": b"f0", "g1": bytes(MAX_FRAME_BYTES), "m": 2})
        assert store.discard_broken(scope, [key_of(1)]) == [False]
        raw.hset(name, "g1", bytes(MAX_FRAME_BYTES + 1))
        assert store.discard_broken(scope, [key_of(1)]) == [True]

    @pytest.mark.parametrize("noted", [{"m": b""}, {}])
    def test_a_page_of_an_earlier_release_is_read(
        self, store: PageStore, raw: Any, scope: bytes, noted: dict[str, bytes]
    ) -> None:
        """The number of frames once stood beside them empty, or not at all."""
        raw.hset(keys.page(scope, key_of(1)), mapping={"g0": b"f0", "g1": b"f11", **noted})
        assert store.discard_broken(scope, [key_of(1)]) == [False]
        assert store.present(scope, [key_of(1)]) == [True]
        assert store.read_page(scope, key_of(1)) == [b"f0", b"f11"]
        assert store.frame_bytes(scope, [key_of(1)], range(3)) == [[2], [3], [0]]
        assert store.read(scope, [key_of(1)], 1) == [b"f11"]

    def test_leases_that_are_held_are_counted(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        """By what the fault matrix and the long runs look for leases with."""
        raw.flushall()
        with store.lease(scope, key_of(1), TTL_S) or pytest.fail("it is free"):
            store.lease(scope, key_of(2), TTL_S)
            short = 0.05
            store.lease(scope, key_of(3), short)
            wait_until(lambda: held_leases(raw) == 2, "the end of the short lease")
        assert held_leases(raw) == 1

    @pytest.mark.parametrize(
        "instead", [b"", b"x", b":", b"x:x", b"inf", b"inf:x", b"9" * 400, b"9" * 400 + b":x", None]
    )
    def test_what_is_no_lease_holds_nothing(
        self, store: PageStore, raw: Any, scope: bytes, instead: bytes | None
    ) -> None:
        """Nor is what is no mark one: else the page could not be stored for a month, or ever."""
        for name in (keys.lease(scope, key_of(1)), keys.mark(scope, key_of(1))):
            raw.delete(name)
            _ = raw.rpush(name, b"x") if instead is None else raw.set(name, instead)
        lease = store.lease(scope, key_of(1), TTL_S)
        assert lease is not None
        assert store.lease(scope, key_of(1), TTL_S) is None
        assert store.commit(scope, key_of(1), [b"a"], TTL_S, began_us=now_us())
        assert lease.release()
        store.forget_pages(scope, [key_of(1)])
        assert not store.commit(scope, key_of(1), [b"a"], TTL_S, began_us=1)

    def test_release_after_the_server_forgot_the_script(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        lease = store.lease(scope, key_of(1), TTL_S)
        assert lease is not None
        raw.script_flush()
        assert lease.release() is True

    def test_full_server_is_busy(self, store: PageStore, raw: Any, scope: bytes) -> None:
        raw.flushall()
        with (
            self.config(raw, "maxmemory", "1mb"),
            self.config(raw, "maxmemory-policy", "noeviction"),
        ):
            with pytest.raises(Busy, match="maxmemory"):
                store.commit(scope, key_of(1), [b"x" * (1 << 20)] * 2, TTL_S)
            assert store.present(scope, [key_of(1)]) == [False]

    def test_replica_is_unavailable(self, store: PageStore, raw: Any, scope: bytes) -> None:
        raw.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(StoreUnavailable):
                store.commit(scope, key_of(1), [b"x"], TTL_S)
        finally:
            raw.replicaof("NO", "ONE")
        store.commit(scope, key_of(1), [b"x"], TTL_S)

    def test_other_answers_are_internal_errors(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        raw.set(keys.page(scope, key_of(1)), "not a hash")
        with pytest.raises(InternalError, match=r"WRONGTYPE|wrong kind"):
            store.read(scope, [key_of(1)], 0)

    def test_dropped_idle_connections_are_replaced(
        self, store: PageStore, raw: Any, scope: bytes
    ) -> None:
        store.ping()
        raw.client_kill_filter(_type="normal", skipme=True)
        assert store.present(scope, [key_of(1)]) == [False]

    def test_stopped_server(
        self, store: PageStore, url: str, server_pid: int, scope: bytes
    ) -> None:
        store.commit(scope, key_of(1), [b"old"], TTL_S)
        with open_store(url, QUICK) as quick:
            answer_of(quick.ping)
            with stopped(server_pid):
                for call in (
                    lambda: quick.present(scope, [key_of(1)]),
                    lambda: quick.frame_bytes(scope, [key_of(1)], [0]),
                    lambda: quick.commit(scope, key_of(1), BIG, TTL_S),
                ):
                    with pytest.raises(StoreUnavailable):
                        call()
            # Awake again, it answers the old questions too: on connections that are closed.
            assert answer_of(lambda: quick.present(scope, [key_of(7)])) == [False]
            page = answer_of(lambda: quick.read_page(scope, key_of(1)))
            assert page == [b"old"]


def kill_in_commit(store: PageStore, pid: int, scope: bytes, key: bytes) -> list[Exception]:
    """Kills the server while it holds half of a page; what the commit raised."""
    raised: list[Exception] = []

    def commit() -> None:
        try:
            store.commit(scope, key, BIG, TTL_S)
        except Exception as error:  # noqa: BLE001  (the test looks at what it was)
            raised.append(error)

    store.ping()  # or the connection would be made in vain, and no byte of the page be sent
    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=commit)
    thread.start()
    wait_until(unread_bytes, "bytes of the page on their way")
    assert thread.is_alive()
    os.kill(pid, signal.SIGKILL)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    return raised
