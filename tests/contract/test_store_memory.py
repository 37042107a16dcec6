from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from lexico_proto.errors import Busy
from lexico_store import MemoryStore, PageStore
from tests.contract.store_suite import SMALL_BYTES, TTL_S, StoreSuite, key_of


class TestMemoryStore(StoreSuite):
    now = 1000.0

    def expire(self, gone: Callable[[], bool], seconds: float) -> None:
        assert not gone()
        self.now += seconds
        assert gone()

    @pytest.fixture
    def store(self) -> Iterator[PageStore]:
        with MemoryStore(clock=lambda: self.now) as store:
            yield store

    @pytest.fixture
    def small_store(self) -> Iterator[PageStore]:
        with MemoryStore(SMALL_BYTES) as store:
            yield store


def test_page_used_last_stays() -> None:
    scope = os.urandom(16)
    with MemoryStore(30) as store:
        for n in range(3):
            store.commit(scope, key_of(n), [b"x" * 10], TTL_S)
        store.touch(scope, [key_of(0)], TTL_S)
        store.read(scope, [key_of(1)], 0)  # no use of it: who reads a prefix touches it
        store.commit(scope, key_of(3), [b"x" * 10], TTL_S)
        assert store.present(scope, [key_of(n) for n in range(4)]) == [True, False, True, True]


def test_expired_pages_go_first() -> None:
    now = [0.0]
    scope = os.urandom(16)
    with MemoryStore(30, lambda: now[0]) as store:
        store.commit(scope, key_of(0), [b"x" * 10], 60)
        store.commit(scope, key_of(1), [b"x" * 10], 5)
        store.commit(scope, key_of(2), [b"x" * 10], 60)
        now[0] = 6
        store.commit(scope, key_of(3), [b"x" * 10], 60)
        assert store.present(scope, [key_of(n) for n in range(4)]) == [True, False, True, True]


def test_what_can_never_fit_is_busy_and_evicts_nothing() -> None:
    scope = os.urandom(16)
    with MemoryStore(30) as store:
        store.put_dictionary(scope, b"d", b"x" * 10)
        store.commit(scope, key_of(0), [b"x" * 10], TTL_S)
        with pytest.raises(Busy):
            store.commit(scope, key_of(1), [b"x" * 21], TTL_S)
        with pytest.raises(Busy):
            store.put_dictionary(scope, b"e", b"x" * 21)
        assert store.present(scope, [key_of(0)]) == [True]
        store.commit(scope, key_of(1), [b"x" * 20], TTL_S)
        assert store.present(scope, [key_of(0), key_of(1)]) == [False, True]
