"""What INFO of a store's servers adds up to."""

from __future__ import annotations

from lexico_store import MemoryStore, StoreUsage


def info(**numbers: object) -> dict[str, str]:
    return {name: f"{number}\r" for name, number in numbers.items()}


def test_servers_add_up() -> None:
    one = info(used_memory=5, maxmemory=9, evicted_keys=1, expired_keys=2, connected_clients=3)
    two = info(used_memory=7, maxmemory=9, evicted_keys=10, expired_keys=20, connected_clients=30)
    assert StoreUsage.of([one, two]) == StoreUsage(12, 18, 11, 22, 33)


def test_one_without_a_bound_leaves_none() -> None:
    assert StoreUsage.of([info(maxmemory=9), info(maxmemory=0)]).max_bytes == 0


def test_what_a_server_does_not_say_is_nothing() -> None:
    assert StoreUsage.of([{"used_memory": "many", "evicted_keys": "-3"}]) == StoreUsage()


def test_a_store_of_this_process_has_no_numbers() -> None:
    assert MemoryStore().usage() is None
