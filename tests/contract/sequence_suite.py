"""What a store does with the pages of a sequence: which expire first, what is forgotten or kept."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable

from lexico_store import Cause, Descriptions, Ledger, PageStore
from lexico_store.lifetimes import now_us
from lexico_store.records import PinNote
from tests.support.waiting import PATIENCE_S

TTL_S = 3600.0


def key_of(n: int) -> bytes:
    return n.to_bytes(32, "big")


class SequenceSuite(ABC):
    """The part of `StoreSuite` that is about sequences."""

    @abstractmethod
    def expire(self, gone: Callable[[], bool], seconds: float) -> None:
        """Until what has so long to live is gone."""

    def test_pages_of_a_sequence_expire_from_its_end(self, store: PageStore, scope: bytes) -> None:
        keys = [key_of(n) for n in range(4)]
        for ttl_s in (0.15, 1.5, 15.0, PATIENCE_S / 2):
            for page in (2, 0, 3, 1):
                store.commit(scope, keys[page], [b"a"], ttl_s, page=page)
            if all(store.touch(scope, keys, ttl_s)):  # else one was gone before: a longer life
                break
        seen: set[tuple[bool, ...]] = set()

        def over() -> bool:
            seen.add(tuple(store.present(scope, keys)))
            return seen >= {(False,) * 4}

        self.expire(over, ttl_s)
        assert all(sorted(present, reverse=True) == list(present) for present in seen)

    def test_match_says_what_is_there_and_renews_it(self, store: PageStore, scope: bytes) -> None:
        namespace, keys = b"n" * 32, [key_of(n) for n in range(4)]
        for page in (0, 1, 3):
            store.commit(scope, keys[page], [b"a"], 0.15, page=page)
        found = store.match(scope, namespace, keys, renew_s=TTL_S)
        assert (found.scope, found.generation) == (scope, 0)
        assert len(found.present) == 4
        assert store.match(scope, namespace, []).present == []
        store.commit(scope, key_of(9), [b"a"], 0.15)
        self.expire(lambda: store.present(scope, [key_of(9)]) == [False], 0.15)
        # What it found is there still; on a busy machine that may be nothing.
        assert store.match(scope, namespace, keys).present == found.present

    def test_how_long_pages_have_to_live(self, store: PageStore, scope: bytes) -> None:
        keys = [key_of(n) for n in range(3)]
        for key in keys[:2]:
            store.commit(scope, key, [b"a"], TTL_S)
        store.persist(scope, keys[1:2])
        left, pinned, absent = store.lives(scope, keys)
        assert left is not None
        assert 0 < left <= TTL_S
        assert (pinned, absent) == (math.inf, None)
        assert store.lives(scope, []) == []

    def test_what_is_forgotten_is_not_found_again(self, store: PageStore, scope: bytes) -> None:
        mine, other = b"m" * 32, b"o" * 32
        stranger = os.urandom(16)
        for owner, key in ((scope, key_of(1)), (scope, key_of(2)), (stranger, key_of(1))):
            store.commit(owner, key, [b"a"], TTL_S)
        store.forget(scope, mine)
        found = store.match(scope, mine, [key_of(1)])
        assert found.present == [False]
        assert found.scope != scope
        assert store.match(scope, b"", [key_of(1)]).present == [False], "it may be of any namespace"
        assert store.match(scope, other, [key_of(2)]).present == [True]
        assert store.match(stranger, mine, [key_of(1)]).present == [True]
        store.commit(scope, key_of(1), [b"late"], TTL_S)  # who began before knows the old scope
        assert store.match(scope, mine, [key_of(1)]).present == [False]
        store.commit(found.scope, key_of(1), [b"new"], TTL_S)
        assert store.match(scope, mine, [key_of(1)]).present == [True]
        before = store.match(scope, mine, []).generation
        store.forget(scope)
        for namespace in (mine, other):
            after = store.match(scope, namespace, [key_of(1), key_of(2)])
            assert after.present == [False, False]
            assert after.generation > before
        assert store.match(stranger, mine, [key_of(1)]).present == [True]

    def test_generations_only_grow(self, store: PageStore, scope: bytes) -> None:
        some = [store.forget(scope, bytes([n]) * 32) for n in range(5)]
        everything = store.forget(scope)
        later = store.forget(scope, b"n" * 32)
        assert [*some, everything, later] == sorted({*some, everything, later})
        assert store.match(scope, bytes(32), []).generation == everything
        assert store.match(scope, b"n" * 32, []).generation == later

    def test_forgotten_pages_are_refused_to_those_that_set_out_before(
        self, store: PageStore, scope: bytes
    ) -> None:
        began_us = now_us()
        store.commit(scope, key_of(1), [b"a"], TTL_S)
        assert store.forget_pages(scope, [key_of(1), key_of(2)]) == [True, False]
        assert store.present(scope, [key_of(1)]) == [False]
        for key in (key_of(1), key_of(2)):
            assert store.commit(scope, key, [b"late"], TTL_S, began_us=began_us) is False
            assert store.read_page(scope, key) is None
        assert store.commit(scope, key_of(3), [b"a"], TTL_S, began_us=began_us) is True
        later_us = now_us() + 1_000_000
        assert store.commit(scope, key_of(1), [b"new"], TTL_S, began_us=later_us) is True
        assert store.read_page(scope, key_of(1)) == [b"new"]
        assert store.forget_pages(scope, []) == []

    def test_pinned_pages_stay_until_they_are_let_go(self, store: PageStore, scope: bytes) -> None:
        keys = [key_of(1), key_of(2), key_of(3)]
        for ttl_s in (0.15, 1.5, 15.0, PATIENCE_S / 2):
            store.commit(scope, keys[0], [b"a"], ttl_s)
            store.commit(scope, keys[1], [b"a"], ttl_s)
            pinned = store.persist(scope, [keys[0], keys[2]])
            if pinned[0]:  # else it was gone before: a longer life
                break
        assert pinned == [True, False]
        assert store.touch(scope, [keys[0], keys[2]], 0.15) == [True, False]
        assert store.match(scope, b"n" * 32, keys[:1], renew_s=0.15).present == [True]
        self.expire(lambda: store.present(scope, [keys[1]]) == [False], ttl_s)
        assert store.present(scope, keys) == [True, False, False]
        assert store.expire(scope, keys, 0.15)[1:] == [False, False]
        self.expire(lambda: store.present(scope, keys[:1]) == [False], 0.15)

    def test_records(self, store: PageStore) -> None:
        name = f"lx1:k:{{{os.urandom(20).hex()}}}"
        assert store.read_record(name) == {}
        assert store.sample_record(name, 3) == (0, {})
        store.write_record(name, {b"a": b"1", b"b\xff": b"2", b"c": b"3"})
        store.write_record(name, {b"a": b"4"})
        assert store.read_record(name, [b"c", b"x", b"a"]) == {b"c": b"3", b"a": b"4"}
        count, drawn = store.sample_record(name, 2)
        assert (count, len(drawn)) == (3, 2)
        assert store.sample_record(name, 9) == (3, {b"a": b"4", b"b\xff": b"2", b"c": b"3"})
        store.remove_fields(name, [b"a", b"x"])
        assert store.read_record(name) == {b"b\xff": b"2", b"c": b"3"}

    def test_namespaces_are_described_while_their_pages_live(
        self, store: PageStore, scope: bytes
    ) -> None:
        ledger, asked = Ledger(store), Descriptions(store)
        mine, other, stranger = b"m" * 32, b"o" * 32, os.urandom(16)

        def put(namespace: bytes, key: bytes, ttl_s: float = TTL_S) -> None:
            began_us = now_us()
            under = store.match(scope, namespace, []).scope
            assert store.commit(under, key, [b"a"], ttl_s, began_us=began_us)
            noted = (scope, namespace, under, key, 1, "codec raw")
            ledger.note(*noted, description=b"of " + namespace, began_us=began_us)

        def listed(namespace: bytes = mine) -> dict[bytes, bytes]:
            total, found = asked.of(scope, namespace)
            assert total >= len(found)
            live = [each for each in found if asked.live(scope, each.namespace)]
            return {each.namespace: each.description for each in live}

        assert asked.of(scope, mine) == (0, [])
        put(mine, key_of(1))
        put(other, key_of(2), 0.15)
        assert listed()[mine] == b"of " + mine
        assert ledger.usage(scope)[0].about == "codec raw"
        assert asked.of(stranger, mine) == (0, [])
        assert asked.why_absent(scope, mine, key_of(1)).cause is Cause.PRESENT
        assert asked.why_absent(stranger, mine, key_of(1)).cause is Cause.NO_TRACE
        assert asked.why_absent(scope, mine, key_of(7)).cause is Cause.NO_TRACE
        self.expire(lambda: store.present(scope, [key_of(2)]) == [False], 0.15)
        assert asked.why_absent(scope, other, key_of(2)).cause in (Cause.LEFT, Cause.NO_TRACE)
        assert set(listed()) == {mine}
        put(mine, key_of(3))
        before = now_us()
        ledger.forget_prompt(scope, mine, [key_of(3)])
        absence = asked.why_absent(scope, mine, key_of(3))
        assert absence.cause is Cause.FORGOTTEN
        assert before <= absence.forgotten_us <= now_us()
        assert set(listed()) == {mine}
        ledger.forget(scope, mine)
        assert listed() == {}
        assert asked.why_absent(scope, mine, key_of(1)).cause is Cause.FORGOTTEN
        put(mine, key_of(1))
        assert set(listed()) == {mine}
        ledger.forget(scope)
        assert listed() == {}
        assert asked.why_absent(scope, other, key_of(2)).cause is Cause.FORGOTTEN

    def test_what_was_on_its_way_when_all_was_forgotten_describes_nothing(
        self, store: PageStore, scope: bytes
    ) -> None:
        namespace, began_us = b"m" * 32, now_us()
        under = store.match(scope, namespace, []).scope
        store.forget(scope)
        store.commit(under, key_of(1), [b"a"], TTL_S, began_us=began_us)
        noted = (scope, namespace, under, key_of(1), 1, "codec raw")
        Ledger(store).note(*noted, description=b"late", began_us=began_us)
        assert Descriptions(store).of(scope, namespace)[1] == []

    def test_a_pin_is_noted_only_as_it_was_read_and_within_bounds(self, store: PageStore) -> None:
        name = f"lx1:k:{{{os.urandom(20).hex()}}}"

        def value(size: int, keys: int = 1) -> bytes:
            about = {"namespace": "00", "label": 'a "bytes": 9\n', "bytes": size}
            return json.dumps(about).encode() + b"\n" + bytes(range(256))[: 32 * keys]

        def note(pin: bytes, new: bytes, former: bytes = b"", most: int = 100) -> PinNote:
            return store.note_pin(name, pin, new, former, most, 3)

        assert note(b"a\xff", value(60)) is PinNote.NOTED
        assert note(b"a\xff", value(60)) is PinNote.NOTED, "its answer was lost: once more"
        assert note(b"b", value(41)) is PinNote.OVER
        assert note(b"b", value(40)) is PinNote.NOTED
        assert note(b"a\xff", value(61), value(60)) is PinNote.OVER
        assert note(b"a\xff", value(50), value(59)) is PinNote.CHANGED
        assert note(b"a\xff", value(50, keys=4), value(60)) is PinNote.NOTED
        assert note(b"c", value(1 << 40), most=-1) is PinNote.NOTED
        assert note(b"d", value(0), most=-1) is PinNote.FULL
        assert note(b"c", value(0), value(1 << 40), most=90) is PinNote.NOTED
        record = {b"a\xff": value(50, keys=4), b"b": value(40), b"c": value(0)}
        assert store.read_record(name) == record
