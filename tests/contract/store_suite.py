"""The definition of a page store: what every backend must do. Each subclasses `StoreSuite`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lexico_proto.errors import InvalidInput, StoreUnavailable
from lexico_proto.limits import MAX_GROUPS
from lexico_store import PageStore
from lexico_store.lease import Lease
from lexico_store.room import Runs
from lexico_store.store import CHUNK_BYTES
from tests.contract.removals_suite import RemovalsSuite
from tests.contract.sequence_suite import TTL_S, SequenceSuite, key_of
from tests.support.waiting import PATIENCE_S, wait_until

SMALL_BYTES = 24 << 20
"""Bound of the store that `small_store` yields."""

# The suite's tests run in many subclasses, on one store for all examples: scopes keep those apart.
RANDOM = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)
PAGES = st.lists(st.lists(st.binary(min_size=1, max_size=9000), min_size=1, max_size=5), max_size=6)


class StoreSuite(SequenceSuite, RemovalsSuite):
    """Subclasses give `store` and `small_store`, and `expire` where the clock is not the wall's."""

    EVICTS_IN_ORDER = True  # what expires first is evicted first, even of few keys

    @pytest.fixture
    def store(self) -> Iterator[PageStore]:
        raise NotImplementedError

    @pytest.fixture
    def small_store(self) -> Iterator[PageStore]:
        raise NotImplementedError

    def expire(self, gone: Callable[[], bool], seconds: float) -> None:
        """Until what has so long to live is gone."""
        wait_until(gone, f"the end of what lives for {seconds:g} s")

    @pytest.fixture
    def scope(self) -> bytes:
        return os.urandom(16)

    # Pages

    @RANDOM
    @given(pages=PAGES)
    def test_random_pages_round_trip(self, store: PageStore, pages: list[list[bytes]]) -> None:
        scope = os.urandom(16)
        keys = [key_of(n) for n in range(len(pages))]
        for key, frames in zip(keys, pages, strict=True):
            store.commit(scope, key, frames, TTL_S)
        assert store.present(scope, keys) == [True] * len(pages)
        for group in range(6):
            expected = [f[group] if group < len(f) else None for f in pages]
            assert store.read(scope, keys, group) == expected
        for key, frames in zip(keys, pages, strict=True):
            assert store.read_page(scope, key) == frames

    def test_frames_are_any_contiguous_buffer(self, store: PageStore, scope: bytes) -> None:
        array = np.arange(70_000, dtype=np.uint8)
        array.flags.writeable = False
        square = np.arange(63 * 3, dtype=np.float32).reshape(63, 3)
        parts = (b"head", array, memoryview(b"tail"))
        small = (bytearray(b"one"), b"two")
        frames = [array, bytearray(b"xy"), memoryview(b"abcdef")[2:4], square, b"z", parts, small]
        store.commit(scope, key_of(1), frames, TTL_S)  # type: ignore[arg-type]
        page = store.read_page(scope, key_of(1))
        assert page is not None
        joined = [b"head" + array.tobytes() + b"tail", b"onetwo"]
        assert page == [array.tobytes(), b"xy", b"cd", square.tobytes(), b"z", *joined]

    def test_large_page_round_trip(self, store: PageStore, scope: bytes) -> None:
        frames = [np.random.default_rng(n).bytes(1 << 20) for n in range(16)]
        store.commit(scope, key_of(1), frames, TTL_S)
        assert store.read(scope, [key_of(1)], 15) == [frames[15]]
        assert store.read_page(scope, key_of(1)) == frames

    @RANDOM
    @given(pages=PAGES, longer=st.integers(0, 70_000))
    def test_frames_may_be_read_into_room_of_the_caller(
        self, store: PageStore, pages: list[list[bytes]], longer: int
    ) -> None:
        scope = os.urandom(16)
        keys = [key_of(n) for n in range(len(pages))]
        for key, frames in zip(keys, pages, strict=True):
            store.commit(scope, key, [frames[0] + b"." * longer], TTL_S)
        absent = key_of(len(pages))
        given: dict[int, Runs] = {}

        def room(place: int, length: int) -> Runs:
            sizes = (3, length - 3) if length > 3 else (length,)
            given[place] = tuple(memoryview(bytearray(size)) for size in sizes)
            return given[place]

        found = store.read(scope, [*keys, absent], 0, room)
        read = [b"".join(frame) if isinstance(frame, tuple) else frame for frame in found]
        assert read == [*(frames[0] + b"." * longer for frames in pages), None]
        assert all(found[place] is runs for place, runs in given.items())
        assert len(pages) not in given

    def test_frames_of_several_groups_in_one_call(self, store: PageStore, scope: bytes) -> None:
        for n in range(3):
            store.commit(scope, key_of(n), [b"%d of %d" % (group, n) for group in range(4)], TTL_S)
        places = [(key_of(2), 3), (key_of(0), 1), (key_of(9), 0), (key_of(2), 0), (key_of(1), 4)]
        assert store.read_frames(scope, places) == [b"3 of 2", b"1 of 0", None, b"0 of 2", None]

    def test_most_frames(self, store: PageStore, scope: bytes) -> None:
        frames = [bytes([n]) for n in range(MAX_GROUPS)]
        store.commit(scope, key_of(1), frames, TTL_S)
        assert store.read_page(scope, key_of(1)) == frames

    def test_many_pages_keep_their_order(self, store: PageStore, scope: bytes) -> None:
        for n in range(0, 150, 2):
            store.commit(scope, key_of(n), [str(n).encode()], TTL_S)
        keys = [key_of(n) for n in range(150)]
        assert store.present(scope, keys) == [n % 2 == 0 for n in range(150)]
        found = store.read(scope, keys, 0)
        assert found == [str(n).encode() if n % 2 == 0 else None for n in range(150)]

    def test_what_is_missing(self, store: PageStore, scope: bytes) -> None:
        assert store.present(scope, []) == []
        assert store.read(scope, [], 0) == []
        assert store.touch(scope, [], TTL_S) == []
        assert store.present(scope, [key_of(9)]) == [False]
        assert store.read(scope, [key_of(9)], 0) == [None]
        assert store.read_page(scope, key_of(9)) is None

    def test_lengths_of_frames(self, store: PageStore, scope: bytes) -> None:
        sizes = {1: [1, 70_000, 3], 2: [1 << 20], 4: [5, 6]}
        for n, lengths in sizes.items():
            frames = [bytes(length) for length in lengths]
            store.commit(scope, key_of(n), frames, TTL_S)
        keys = [key_of(n) for n in (1, 2, 3, 4)]
        assert store.frame_bytes(scope, keys, [0]) == [[1, 1 << 20, 0, 5]]
        assert store.frame_bytes(scope, keys, range(3)) == [
            [1, 1 << 20, 0, 5],
            [70_000, 0, 0, 6],
            [3, 0, 0, 0],
        ]
        assert store.frame_bytes(scope, keys, [2, 0]) == [[3, 0, 0, 0], [1, 1 << 20, 0, 5]]
        assert store.frame_bytes(scope, keys, []) == []
        assert store.frame_bytes(scope, [], range(2)) == [[], []]
        assert store.frame_bytes(os.urandom(16), keys, [0]) == [[0, 0, 0, 0]]
        store.commit(scope, key_of(1), [b"xy"], TTL_S)
        assert store.frame_bytes(scope, keys[:1], range(2)) == [[2], [0]]
        store.discard(scope, keys)
        assert store.frame_bytes(scope, keys, [0]) == [[0, 0, 0, 0]]

    def test_lengths_of_many_frames_keep_their_order(self, store: PageStore, scope: bytes) -> None:
        for n in range(0, 150, 2):
            frames = [bytes(n + 1), bytes(2 * n + 1)]
            store.commit(scope, key_of(n), frames, TTL_S)
        keys = [key_of(n) for n in range(150)]
        found = store.frame_bytes(scope, keys, range(MAX_GROUPS))
        assert found[0] == [n + 1 if n % 2 == 0 else 0 for n in range(150)]
        assert found[1] == [2 * n + 1 if n % 2 == 0 else 0 for n in range(150)]
        assert found[2:] == [[0] * 150] * (MAX_GROUPS - 2)

    def test_scopes_never_meet(self, store: PageStore, scope: bytes) -> None:
        other = os.urandom(16)
        store.commit(scope, key_of(1), [b"mine"], TTL_S)
        store.put_dictionary(scope, b"d", b"mine")
        assert store.present(other, [key_of(1)]) == [False]
        assert store.read(other, [key_of(1)], 0) == [None]
        assert store.touch(other, [key_of(1)], TTL_S) == [False]
        assert store.get_dictionary(other, b"d") is None
        assert store.list_dictionaries(other) == []
        store.commit(other, key_of(1), [b"theirs"], TTL_S)
        assert store.read(scope, [key_of(1)], 0) == [b"mine"]
        assert store.lease(scope, key_of(1), TTL_S)
        assert store.lease(other, key_of(1), TTL_S)

    def test_commit_again_replaces_every_group(self, store: PageStore, scope: bytes) -> None:
        store.commit(scope, key_of(1), [b"a0", b"a1", b"a2"], TTL_S)
        store.commit(scope, key_of(1), [b"b0"], TTL_S)
        assert store.read(scope, [key_of(1)], 2) == [None]
        assert store.read_page(scope, key_of(1)) == [b"b0"]

    def test_concurrent_commits_never_mix(self, store: PageStore, scope: bytes) -> None:
        done = threading.Event()

        def write(version: int) -> None:
            while not done.is_set():
                store.commit(scope, key_of(1), [bytes([version]) * 20_000] * 8, TTL_S)

        def read(seen: set[int]) -> None:
            while not done.is_set():
                page = store.read_page(scope, key_of(1))
                assert page is not None
                versions = {byte for frame in page for byte in set(frame)}
                assert len(versions) == 1
                assert len(page) == 8
                seen |= versions

        store.commit(scope, key_of(1), [b"\x00" * 20_000] * 8, TTL_S)
        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, version) for version in (1, 2)]
            sights: list[set[int]] = [set(), set()]
            readers = [pool.submit(read, seen) for seen in sights]
            wait_until(lambda: all(seen >= {1, 2} for seen in sights), "both versions", sights.copy)
            done.set()
            for worker in writers + readers:
                worker.result()

    # Time

    def test_page_expires_whole(self, store: PageStore, scope: bytes) -> None:
        store.commit(scope, key_of(1), [b"a", b"b"], 0.15)
        store.commit(scope, key_of(2), [b"c"], TTL_S)
        self.expire(lambda: store.present(scope, [key_of(1)]) == [False], 0.15)
        assert store.present(scope, [key_of(1), key_of(2)]) == [False, True]
        assert store.read_page(scope, key_of(1)) is None
        assert store.read(scope, [key_of(1)], 1) == [None]

    def test_touch_renews_and_never_revives(self, store: PageStore, scope: bytes) -> None:
        for ttl_s in (0.15, 1.5, 15.0, PATIENCE_S / 2):
            store.commit(scope, key_of(1), [b"a"], ttl_s)
            store.commit(scope, key_of(2), [b"a"], ttl_s)
            touched = store.touch(scope, [key_of(1), key_of(3)], TTL_S)
            if touched[0]:  # else it was gone before: a longer life
                break
        assert touched == [True, False]
        self.expire(lambda: store.present(scope, [key_of(2)]) == [False], ttl_s)
        assert store.touch(scope, [key_of(1), key_of(2)], TTL_S) == [True, False]
        assert store.present(scope, [key_of(1), key_of(2), key_of(3)]) == [True, False, False]

    # Leases

    def test_one_holder_at_a_time(self, store: PageStore, scope: bytes) -> None:
        with ThreadPoolExecutor(8) as pool:
            asked = pool.map(lambda _: store.lease(scope, key_of(1), TTL_S), range(8))
            won = [lease for lease in asked if lease]
        assert len(won) == 1
        assert store.lease(scope, key_of(2), TTL_S) is not None
        assert won[0].release() is True
        assert won[0].release() is False
        assert store.lease(scope, key_of(1), TTL_S) is not None

    def test_release_of_expired_lease_spares_the_next(self, store: PageStore, scope: bytes) -> None:
        first = store.lease(scope, key_of(1), 0.1)
        assert first is not None
        taken: list[Lease] = []

        def gone() -> bool:
            second = store.lease(scope, key_of(1), TTL_S)
            taken.extend([second] if second is not None else [])
            return bool(taken)

        self.expire(gone, 0.1)
        (second,) = taken
        assert first.release() is False
        assert store.lease(scope, key_of(1), TTL_S) is None
        assert second.release() is True

    def test_an_owner_gets_its_lease_again(self, store: PageStore, scope: bytes) -> None:
        first = store.lease(scope, key_of(1), TTL_S, b"me")
        assert first is not None
        assert store.lease(scope, key_of(1), TTL_S, b"you") is None
        again = store.lease(scope, key_of(1), TTL_S, b"me")
        assert again is not None
        assert store.lease(scope, key_of(1), TTL_S) is None
        assert again.release() is True
        assert first.release() is False
        for owner in (b"", bytes(65)):
            with pytest.raises(InvalidInput):
                store.lease(scope, key_of(1), TTL_S, owner)

    def test_lease_ends_with_its_block(self, store: PageStore, scope: bytes) -> None:
        lease = store.lease(scope, key_of(1), TTL_S)
        assert lease is not None
        with pytest.raises(KeyError), lease:
            raise KeyError
        assert store.lease(scope, key_of(1), TTL_S) is not None

    def test_lease_is_not_a_page(self, store: PageStore, scope: bytes) -> None:
        assert store.lease(scope, key_of(1), TTL_S)
        assert store.present(scope, [key_of(1)]) == [False]

    # Dictionary sets

    @pytest.mark.parametrize(
        "size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 63]
    )
    def test_dictionary_round_trip(self, store: PageStore, scope: bytes, size: int) -> None:
        data = np.random.default_rng(size).bytes(size)
        store.put_dictionary(scope, b"d" * 32, np.frombuffer(data, np.uint8))
        assert store.get_dictionary(scope, b"d" * 32) == data

    def test_dictionaries_are_listed(self, store: PageStore, scope: bytes) -> None:
        assert store.list_dictionaries(scope) == []
        assert store.get_dictionary(scope, b"b") is None
        for digest in (b"b", b"\xff\x00", b"a", b"b"):
            store.put_dictionary(scope, digest, digest * 3)
        assert store.list_dictionaries(scope) == [b"a", b"b", b"\xff\x00"]
        assert store.get_dictionary(scope, b"\xff\x00") == b"\xff\x00" * 3

    def test_smaller_dictionary_replaces_all(self, store: PageStore, scope: bytes) -> None:
        store.put_dictionary(scope, b"d", b"x" * (2 * CHUNK_BYTES))
        store.put_dictionary(scope, b"d", b"y")
        assert store.get_dictionary(scope, b"d") == b"y"

    @pytest.fixture
    def crowd(self, scope: bytes) -> list[bytes]:
        """Keys of 16 pages that compete for the same memory."""
        return [key_of(n) for n in range(16)]

    def test_eviction_takes_whole_pages_and_no_dictionary(
        self, small_store: PageStore, scope: bytes, crowd: list[bytes]
    ) -> None:
        dictionary = os.urandom(2 * CHUNK_BYTES + 1)
        small_store.put_dictionary(scope, b"d", dictionary)
        frames = [os.urandom(1 << 20) for _ in range(3)]
        for key in crowd:
            small_store.commit(scope, key, frames, TTL_S)
        present = small_store.present(scope, crowd)
        assert present[-1]
        assert not all(present)
        assert not (self.EVICTS_IN_ORDER and present[0])
        assert small_store.match(scope, b"n" * 32, crowd).present == present
        for key, there in zip(crowd, present, strict=True):
            assert small_store.read_page(scope, key) == (frames if there else None)
        assert small_store.get_dictionary(scope, b"d") == dictionary
        assert small_store.list_dictionaries(scope) == [b"d"]

    # Arguments and the end

    def test_arguments_that_can_never_work(self, store: PageStore, scope: bytes) -> None:
        key, strided = key_of(1), np.zeros((4, 4), np.uint8)[:, ::2]
        for bad_scope in (b"", b"x" * 65, "text"):
            with pytest.raises(InvalidInput):
                store.present(bad_scope, [key])  # type: ignore[arg-type]
        for bad_key in (b"", b"x" * 31, b"x" * 33, "x" * 32):
            with pytest.raises(InvalidInput):
                store.commit(scope, bad_key, [b"x"], TTL_S)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput):
                store.read(scope, [key, bad_key], 0)  # type: ignore[list-item]
        for bad_frames in ([], [b""], [b"x", b""], [strided], ["text"], [b"x"] * (MAX_GROUPS + 1)):
            with pytest.raises(InvalidInput):
                store.commit(scope, key, bad_frames, TTL_S)  # type: ignore[arg-type]
        for bad_ttl in (0, -1.0, float("nan"), float("inf"), 1e12):
            with pytest.raises(InvalidInput):
                store.commit(scope, key, [b"x"], bad_ttl)
            with pytest.raises(InvalidInput):
                store.touch(scope, [key], bad_ttl)
            with pytest.raises(InvalidInput):
                store.lease(scope, key, bad_ttl)
        for bad_group in (-1, MAX_GROUPS):
            with pytest.raises(InvalidInput):
                store.read(scope, [key], bad_group)
            with pytest.raises(InvalidInput):
                store.frame_bytes(scope, [key], [0, bad_group])
        for digest, data in ((b"", b"x"), (b"x" * 65, b"x"), (b"d", b"")):
            with pytest.raises(InvalidInput):
                store.put_dictionary(scope, digest, data)
        assert store.present(scope, [key]) == [False]

    def test_closed_store_answers_nothing(self, small_store: PageStore, scope: bytes) -> None:
        with small_store as entered:
            entered.ping()
            lease = entered.lease(scope, key_of(1), TTL_S)
            assert lease is not None
        small_store.close()
        calls: list[Callable[[], object]] = [
            small_store.ping,
            lease.release,
            lambda: small_store.present(scope, [key_of(1)]),
            lambda: small_store.frame_bytes(scope, [key_of(1)], [0]),
            lambda: small_store.commit(scope, key_of(1), [b"x"], TTL_S),
            lambda: small_store.get_dictionary(scope, b"d"),
            lambda: small_store.list_dictionaries(scope),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match="closed"):
                call()
