"""What a tenant has in the store, as the ledger counts, pins and forgets it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lexico_proto.errors import InvalidInput
from lexico_store import Ledger, MemoryStore, keys
from lexico_store.ledger import Pin
from lexico_store.records import PinNote
from tests.contract.store_suite import key_of

TENANT, OTHER = b"tenant-of-a-test", b"another-tenant"
NAMESPACE, LATER = b"n" * 32, b"l" * 32
KEYS = [key_of(n) for n in range(5)]


def put(
    store: MemoryStore,
    ledger: Ledger,
    stored: list[bytes],
    size: int = 10,
    *,
    tenant: bytes = TENANT,
) -> None:
    scope = store.match(tenant, NAMESPACE, []).scope
    for page, key in enumerate(stored):
        ledger.note(tenant, NAMESPACE, scope, key, size, "codec raw")
        store.commit(scope, key, [b"x" * size], 60, page=page)


def there(store: MemoryStore, asked: list[bytes] = KEYS, tenant: bytes = TENANT) -> list[bool]:
    return store.match(tenant, NAMESPACE, asked).present


def test_usage_heals_itself() -> None:
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    ledger = Ledger(store)
    assert ledger.usage(TENANT) == []
    assert ledger.estimate(TENANT) == 0
    put(store, ledger, KEYS)
    assert ledger.estimate(TENANT) == 50
    assert ledger.estimate(OTHER) == 0
    store.discard(TENANT, KEYS[4:])
    (use,) = ledger.usage(TENANT)
    assert (use.namespace, use.about, use.pages, use.size, use.gone) == (
        NAMESPACE,
        "codec raw",
        4,
        40,
        1,
    )
    now[0] = 61
    assert ledger.estimate(TENANT) == 0
    assert [(use.pages, use.gone) for use in ledger.usage(TENANT)] == [(0, 0)], "notes are gone"
    assert ledger.usage(TENANT) == []


def test_many_pages_are_estimated() -> None:
    store = MemoryStore()
    ledger = Ledger(store)
    many = [key_of(n) for n in range(1500)]
    put(store, ledger, many)
    assert ledger.estimate(TENANT) == 15_000
    store.discard(TENANT, many[::2])
    assert 5_000 < ledger.estimate(TENANT) < 10_000
    assert ledger.usage(TENANT)[0].size == 7_500


def test_forgetting_a_namespace_frees_its_pages_and_no_others() -> None:
    store = MemoryStore()
    ledger = Ledger(store)
    put(store, ledger, KEYS)
    put(store, ledger, KEYS[:2], tenant=OTHER)
    ledger.pin(TENANT, NAMESPACE, KEYS[:2], "", None)
    store.remove_fields(
        keys.index(TENANT, NAMESPACE), [keys.page_digest(keys.page(TENANT, KEYS[0]))]
    )
    assert ledger.forget(TENANT, LATER) == 0
    assert there(store) == [True] * 5
    assert ledger.forget(TENANT, NAMESPACE) == 4, "those that are noted"
    assert there(store) == [False] * 5
    assert store.present(TENANT, KEYS) == [False] * 5, "under the former name neither"
    assert ledger.pins(TENANT) == []
    assert there(store, KEYS[:2], OTHER) == [True] * 2
    put(store, ledger, KEYS[:1])
    assert there(store) == [True] + [False] * 4
    assert ledger.forget(TENANT) == 1
    assert there(store) == [False] * 5
    assert ledger.usage(OTHER)[0].pages == 2


def test_forgetting_a_prompt() -> None:
    store = MemoryStore()
    ledger = Ledger(store)
    put(store, ledger, KEYS)
    ledger.pin(TENANT, NAMESPACE, KEYS[:4], "long", None)
    ledger.pin(TENANT, NAMESPACE, KEYS[:1], "short", None)
    assert ledger.forget_prompt(TENANT, NAMESPACE, [*KEYS[2:], key_of(99)]) == 3
    assert there(store) == [True, True, False, False, False]
    assert {pin.label: pin.keys for pin in ledger.pins(TENANT)} == {
        "long": tuple(KEYS[:2]),
        "short": tuple(KEYS[:1]),
    }
    ledger.forget_prompt(TENANT, NAMESPACE, KEYS[:1])
    assert ledger.pins(TENANT) == []
    assert store.present(TENANT, KEYS) == [False] * 5, "no pinned page is left without its pin"


def test_pins_hold_leading_pages_within_a_bound() -> None:
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    ledger = Ledger(store)
    put(store, ledger, KEYS)
    store.discard(TENANT, KEYS[3:4])
    assert ledger.pin(TENANT, NAMESPACE, KEYS, "too much", 29) is None
    long = ledger.pin(TENANT, NAMESPACE, KEYS, "system prompt", 30)
    assert long is not None
    assert (long.keys, long.size) == (tuple(KEYS[:3]), 30)
    assert ledger.pin(TENANT, NAMESPACE, KEYS, "system prompt", 30) == long, "the same again"
    assert ledger.pin(TENANT, NAMESPACE, KEYS[:2], "", 49) is None
    short = ledger.pin(TENANT, NAMESPACE, KEYS[:2], "", 50)
    assert short is not None
    nothing = ledger.pin(TENANT, NAMESPACE, [key_of(7)], "", None)
    assert nothing is not None
    assert nothing.keys == ()
    assert {pin.pin for pin in ledger.pins(TENANT)} == {long.pin, short.pin}
    now[0] = 100
    assert there(store) == [True, True, True, False, False]
    assert ledger.unpin(TENANT, long.pin, 60) == 1, "the others are another pin's"
    now[0] = 200
    assert there(store) == [True, True, False, False, False]
    assert ledger.unpin(TENANT, short.pin, 60) == 2
    now[0] = 300
    assert there(store) == [False] * 5
    with pytest.raises(InvalidInput, match="quota"):
        ledger.unpin(TENANT, short.pin, 60)
    with pytest.raises(InvalidInput, match="label"):
        ledger.pin(TENANT, NAMESPACE, KEYS, "x" * 201, None)


@pytest.mark.parametrize("namespace", [NAMESPACE, LATER], ids=["not noted", "of another namespace"])
def test_a_pin_holds_the_bytes_that_it_holds(namespace: bytes) -> None:
    """Whatever namespace is named, and noted or not."""
    store = MemoryStore()
    ledger = Ledger(store)
    put(store, ledger, KEYS[:2])
    for page, key in enumerate(KEYS[2:], 2):
        store.commit(TENANT, key, [b"x" * 3, b"y" * 7], 60, page=page)
    assert ledger.pin(TENANT, namespace, KEYS, "", 49) is None
    assert ledger.pins(TENANT) == []
    pin = ledger.pin(TENANT, namespace, KEYS, "", 50)
    assert pin is not None
    assert (pin.keys, pin.size) == (tuple(KEYS), 50)


def test_namespaces_stay_bounded_where_each_is_used_once() -> None:
    """In a store that holds 100 pages, after 3000 with a salt of their own each."""
    store = MemoryStore(max_bytes=1000)
    ledger = Ledger(store)
    names = [n.to_bytes(32, "big") for n in range(3000)]
    for name in names:
        store.commit(TENANT, name, [b"x" * 10], 60)
        ledger.note(TENANT, name, TENANT, name, 10, "codec raw")
    noted = [name for name in names if store.sample_record(keys.index(TENANT, name), 1)[0]]
    listed = store.read_record(keys.namespaces(TENANT))
    assert set(noted) == set(listed)
    assert {name for name in names if store.present(TENANT, [name])[0]} <= set(listed)
    assert len(listed) < 500


def test_a_namespace_that_was_taken_out_is_listed_with_its_next_page() -> None:
    store = MemoryStore()
    ledger, another = Ledger(store), Ledger(store)
    put(store, ledger, KEYS[:1])
    store.discard(TENANT, KEYS[:1])
    for n in range(5, 7):
        another.note(TENANT, LATER, TENANT, key_of(n), 10, "codec raw")
        store.commit(TENANT, key_of(n), [b"x" * 10], 60)
    another.usage(TENANT)
    assert set(store.read_record(keys.namespaces(TENANT))) == {LATER}
    put(store, ledger, KEYS[1:2])
    assert set(store.read_record(keys.namespaces(TENANT))) == {NAMESPACE, LATER}


def test_the_bytes_of_many_namespaces_are_estimated_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    ledger = Ledger(store)
    for n in range(2000):
        name = n.to_bytes(32, "big")
        store.commit(TENANT, name, [b"x" * 10], 60)
        ledger.note(TENANT, name, TENANT, name, 10, "codec raw")
    asked, sample = [], store.sample_record

    def counted(name: str, count: int) -> tuple[int, dict[bytes, bytes]]:
        asked.append(name)
        return sample(name, count)

    monkeypatch.setattr(store, "sample_record", counted)
    assert ledger.estimate(TENANT) == 20_000
    assert len(asked) < 200


def test_notes_stay_bounded_where_nobody_looks() -> None:
    """In a store that holds 100 pages, after 3000."""
    store = MemoryStore(max_bytes=1000)
    ledger = Ledger(store)
    put(store, ledger, [key_of(n) for n in range(3000)])
    index = keys.index(TENANT, NAMESPACE)
    assert store.sample_record(index, 1)[0] < 500


def test_pins_of_several_servers_stay_within_the_bound() -> None:
    """Each has read that there is room, and then notes."""
    together = threading.Barrier(4)

    class Store(MemoryStore):
        def note_pin(self, *given: Any) -> PinNote:
            together.wait()
            return super().note_pin(*given)

    store = Store()
    put(store, Ledger(store), KEYS)
    prompts = [KEYS[:count] for count in (1, 2, 3, 4)]

    def pin(keys: list[bytes]) -> Pin | None:
        return Ledger(store).pin(TENANT, NAMESPACE, keys, "", 40)

    with ThreadPoolExecutor(4) as threads:
        made = [pin for pin in threads.map(pin, prompts) if pin is not None]
    assert made
    assert sum(pin.size for pin in made) <= 40
    assert {pin.pin for pin in Ledger(store).pins(TENANT)} == {pin.pin for pin in made}


def test_a_pin_that_others_change_meanwhile_is_looked_at_again() -> None:
    store = MemoryStore()
    ledger = Ledger(store)
    put(store, ledger, KEYS)
    former = ledger.pin(TENANT, NAMESPACE, KEYS, "", None)
    assert former is not None
    store.discard(TENANT, KEYS[3:])
    read = store.read_record
    unpinned: list[int] = []

    def read_record(name: str, fields: Any = None) -> dict[bytes, bytes]:
        found = read(name, fields)
        if name == keys.pins(TENANT) and not unpinned:
            unpinned.append(0)  # once, and before it unpins by itself
            ledger.unpin(TENANT, former.pin, 60)
        return found

    store.read_record = read_record  # type: ignore[method-assign]
    again = ledger.pin(TENANT, NAMESPACE, KEYS, "", None)
    assert again is not None
    assert again.keys == tuple(KEYS[:3]), "not what a pin held that has ended"
