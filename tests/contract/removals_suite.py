"""What a store removes, and what it spares."""

from __future__ import annotations

from lexico_proto.limits import MAX_GROUPS
from lexico_store import PageStore
from tests.contract.sequence_suite import TTL_S, key_of


class RemovalsSuite:
    """The part of `StoreSuite` that is about pages that end before their time."""

    def test_discard_removes_pages_whole(self, store: PageStore, scope: bytes) -> None:
        for i in (1, 2):
            store.commit(scope, key_of(i), [b"a", b"b"], TTL_S)
        store.discard(scope, [key_of(1), key_of(3)])
        store.discard(scope, [])
        assert store.present(scope, [key_of(1), key_of(2)]) == [False, True]
        assert store.read(scope, [key_of(1)], 1) == [None]

    def test_whole_pages_are_not_broken(self, store: PageStore, scope: bytes) -> None:
        frames = {1: [b"a"], 2: [b"a", b"b" * 70_000, b"c"], 3: [b"a"] * MAX_GROUPS}
        for n, each in frames.items():
            store.commit(scope, key_of(n), each, TTL_S)
        store.commit(scope, key_of(4), [b"a"] * 5, TTL_S)
        store.commit(scope, key_of(4), [b"b", b"c"], TTL_S)  # shorter than the former
        store.persist(scope, [key_of(1)])
        keys = [key_of(n) for n in range(1, 6)]
        assert store.discard_broken(scope, keys) == [False] * 5
        assert store.discard_broken(scope, []) == []
        assert store.present(scope, keys) == [True] * 4 + [False]
        assert store.read_page(scope, key_of(2)) == frames[2]
