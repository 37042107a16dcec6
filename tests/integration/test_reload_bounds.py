"""What one caller of the reload server, or a store that stands still, can take from the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b

import grpc
import pytest

from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_proto import errors
from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_proto.v1 import dictionaries_pb2 as dict_pb
from lexico_proto.v1 import dictionaries_pb2_grpc, reload_pb2_grpc
from lexico_proto.v1 import reload_pb2 as pb
from lexico_services.config import ListenConfig, ReloadConfig
from lexico_services.reload import frame_reader, run
from lexico_services.reload.dictionaries_servicer import register_builtin_sets
from lexico_services.reload.server import ReloadServer
from lexico_store import MemoryStore, PageStore
from lexico_store.scopes import SHARED_SCOPE
from tests.integration.test_reload import (
    KEYS,
    MIB,
    SCOPE,
    _stream,
    fill,
    filled,
    frame_of,
    raises,
    registration,
)
from tests.support.dictionaries import random_set
from tests.support.services import CHANNEL_OPTIONS
from tests.support.waiting import PATIENCE_S, lingering, skip_ahead, until


@dataclass
class Reload:
    """A reload server and stubs for it."""

    server: ReloadServer
    reload: reload_pb2_grpc.ReloadStub
    dictionaries: dictionaries_pb2_grpc.DictionariesStub

    async def get(self, keys: Sequence[bytes], groups: int = 1) -> list[pb.GetResponse]:
        request = pb.GetRequest(page_keys=keys, groups=groups)
        return [part async for part in self.reload.Get(request, timeout=PATIENCE_S)]


@asynccontextmanager
async def running(store: PageStore, **bounds: object) -> AsyncIterator[Reload]:
    times = {"match_timeout_s": PATIENCE_S, "max_stream_s": PATIENCE_S}
    config = ReloadConfig(**{**times, **bounds})  # type: ignore[arg-type]
    server = ReloadServer(store, ListenConfig(drain_s=1.0), config)
    await server.start()
    target = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        yield Reload(
            server,
            reload_pb2_grpc.ReloadStub(channel),
            dictionaries_pb2_grpc.DictionariesStub(channel),
        )
    await server.drain()
    assert server.buffers.used == 0


async def nothing_buffered(services: Reload) -> None:
    buffers = services.server.buffers
    await until(lambda: buffers.used == 0, "no buffered byte", lambda: buffers.used)


async def test_a_get_that_nobody_reads_gives_its_slot_back() -> None:
    store = filled(20, 1, MIB)
    async with running(store, max_streams=1) as services:
        stalled = services.reload.Get(pb.GetRequest(page_keys=KEYS, groups=1))
        await stalled.read()
        with raises(errors.Busy):
            await services.get(KEYS[:1])
        skip_ahead()
        await nothing_buffered(services)
        assert len(await services.get(KEYS[:3])) == 3
        with raises(errors.DeadlineExpired):  # what was on its way comes, then the reason
            while await stalled.read() is not grpc.aio.EOF:
                pass
            raise AssertionError(await stalled.code())


async def test_a_stalled_get_that_is_cancelled_late_does_no_harm() -> None:
    async with running(filled(20, 1, MIB), max_streams=1) as services:
        for _ in range(3):
            stalled = services.reload.Get(pb.GetRequest(page_keys=KEYS, groups=1))
            await stalled.read()
            skip_ahead()
            await nothing_buffered(services)
            stalled.cancel()
        assert len(await services.get(KEYS[:3])) == 3


async def test_a_peer_that_goes_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    async with running(filled(20, 1, MIB)) as services:
        target = f"127.0.0.1:{services.server.port}"
        for _ in range(8):
            async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
                call = reload_pb2_grpc.ReloadStub(channel).Get(
                    pb.GetRequest(page_keys=KEYS, groups=1)
                )
                await call.read()
        await nothing_buffered(services)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("lexico")] == []


async def test_fetch_and_register_have_a_time_as_well() -> None:
    data = bytes(16 * MIB)
    digest = blake2b(data, digest_size=32).digest()
    store = MemoryStore()
    store.put_dictionary(SHARED_SCOPE, digest, data)

    async def silent() -> AsyncIterator[dict_pb.RegisterRequest]:
        yield registration(data, digest)[0]
        await asyncio.Event().wait()

    async with running(store, max_streams=1) as services:
        stalled = services.dictionaries.Fetch(dict_pb.FetchRequest(digest=digest))
        await stalled.read()
        skip_ahead()
        await nothing_buffered(services)
        call = services.dictionaries.Register(silent())
        while not call.done():  # whenever it is that the server begins to count
            skip_ahead()
            await asyncio.sleep(0)
        with raises(errors.DeadlineExpired):
            await call
        request = dict_pb.FetchRequest(digest=digest)
        pieces = [p.data async for p in services.dictionaries.Fetch(request)]
        assert b"".join(pieces) == data
        stalled.cancel()


async def test_a_page_key_is_asked_for_once() -> None:
    async with running(filled(2)) as services:
        with raises(errors.InvalidInput):
            await services.get([KEYS[0], KEYS[1], KEYS[0]])


class Measuring(MemoryStore):
    """Notes how many frames are asked for, and can hold the reads up."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.measured: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def read(self, scope: bytes, keys: Sequence[bytes], group: int) -> list[bytes | None]:
        self.reads.append(len(keys))
        self.go.wait(PATIENCE_S)
        return super().read(scope, keys, group)

    def frame_bytes(
        self, scope: bytes, keys: Sequence[bytes], groups: Sequence[int]
    ) -> list[list[int]]:
        self.measured.append(len(keys) * len(groups))
        return super().frame_bytes(scope, keys, groups)


async def test_bytes_are_bounded_whatever_frames_are_long() -> None:
    store = Measuring()
    sizes = [300, 300, 300, 30 * MIB, 20 * MIB, 300, 25 * MIB, 300]
    for page, size in enumerate(sizes):
        fill(store, page, 1, size)
    limit = 2 * MAX_FRAME_BYTES
    async with running(store, max_buffered_bytes=limit) as services:
        budget = services.server.buffers
        answers = await asyncio.gather(*(services.get(KEYS[: len(sizes)]) for _ in range(6)))
        for parts in answers:
            seen = [b"".join(p.frame.data for p in parts if p.frame.page == i) for i in range(8)]
            assert [len(frame) for frame in seen] == sizes
            assert seen[6] == bytes(frame_of(6, 0, 25 * MIB))
        assert budget.peak <= limit


async def test_small_frames_are_read_many_at_a_time() -> None:
    store = Measuring()
    for page in range(20):
        fill(store, page, 2)
    async with running(store, max_buffered_bytes=MAX_FRAME_BYTES) as services:
        await services.get(KEYS, 2)
        assert services.server.buffers.peak == 2 * 20 * 300  # one is sent, one is read
    assert store.reads == [20, 20]
    assert store.measured == [40]


async def test_lengths_are_asked_for_in_bounded_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reader, "MEASURED_FRAMES", 12)
    store = Measuring()
    for page in range(5):
        fill(store, page, 5)
    async with running(store) as services:
        parts = await services.get(KEYS[:5], 5)
    assert [(p.frame.group, p.frame.page) for p in parts] == [
        (group, page) for group in range(5) for page in range(5)
    ]
    assert store.measured == [10, 10, 5]


async def test_large_frames_are_read_up_to_a_number_of_bytes() -> None:
    store = Measuring()
    for page in range(7):
        fill(store, page, 1, 3 * MIB)
    async with running(store) as services:
        await services.get(KEYS[:7])
        assert services.server.buffers.peak <= 2 * frame_reader.BATCH_BYTES
    assert store.reads == [2, 2, 2, 1]


async def test_what_is_not_there_is_not_read() -> None:
    store = Measuring()
    for page in (0, 1, 3):
        fill(store, page, 2)
    async with running(store) as services:
        parts = await services.get(KEYS[:4], 2)
    assert [p.miss.page for p in parts if p.HasField("miss")] == [2]
    assert sum(store.reads) == 4


async def test_a_frame_over_the_stores_cap_is_a_miss_and_is_not_read() -> None:
    class Foreign(Measuring):
        def frame_bytes(self, *arguments: object) -> list[list[int]]:
            return [[300, MAX_FRAME_BYTES + 1, 300]]

    store = Foreign()
    for page in range(3):
        fill(store, page, 1)
    async with running(store, max_buffered_bytes=MAX_FRAME_BYTES) as services:
        parts = await services.get(KEYS[:3])
    assert [part.WhichOneof("part") for part in parts] == ["frame", "miss"]
    assert sum(store.reads) == 1


async def test_no_read_ahead_where_it_does_not_fit() -> None:
    store = Measuring()
    for page in range(4):
        fill(store, page, 1, 25 * MIB)
    async with running(store, max_buffered_bytes=MAX_FRAME_BYTES) as services:
        first, second = await asyncio.gather(services.get(KEYS[:4]), services.get(KEYS[:4]))
        assert len(first) == len(second) == 100
        assert services.server.buffers.peak == 50 * MIB  # a third would not fit
    assert store.reads == [1] * 8


async def test_bytes_count_until_the_thread_is_done() -> None:
    store = Measuring()
    fill(store, 0, 1)
    async with running(store) as services:
        store.go.clear()
        call = services.reload.Get(pb.GetRequest(page_keys=KEYS[:1], groups=1))
        await until(lambda: store.reads, "a read of the store")
        call.cancel()
        await lingering()
        assert services.server.buffers.used == 300
        store.go.set()
        await nothing_buffered(services)


async def test_a_register_holds_its_slot_to_the_end() -> None:
    class Slow(MemoryStore):
        began, go = threading.Event(), threading.Event()

        def put_dictionary(self, scope: bytes, digest: bytes, data: object) -> None:
            self.began.set()
            self.go.wait(PATIENCE_S)
            super().put_dictionary(scope, digest, data)  # type: ignore[arg-type]

    store, dictionary = Slow(), random_set(layers=1, head_dim=8, atoms=16)
    messages = registration(dictionary.to_bytes(), dictionary.digest)
    async with running(store, max_streams=1) as services:
        call = services.dictionaries.Register(_stream(messages))
        task = asyncio.ensure_future(call.code())
        await until(store.began.is_set, "the set on its way into the store")
        with raises(errors.Busy):
            await services.get(KEYS[:1])
        call.cancel()  # the thread goes on, so the slot is still taken
        await lingering()
        with raises(errors.Busy):
            await services.get(KEYS[:1])
        store.go.set()
        await task
        await nothing_buffered(services)
        assert len(await services.get(KEYS[:1])) == 1


async def test_bytes_of_a_tenants_sets_are_bounded() -> None:
    sets = [random_set(layers=1, head_dim=8, atoms=16, seed=i) for i in range(3)]
    size = len(sets[0].to_bytes())
    store = MemoryStore()
    async with running(store, max_dictionary_bytes_per_tenant=2 * size + 10) as services:
        for each in sets[:2]:
            messages = registration(each.to_bytes(), each.digest)
            assert (await services.dictionaries.Register(_stream(messages))).added
        with raises(errors.Busy):
            messages = registration(sets[2].to_bytes(), sets[2].digest)
            await services.dictionaries.Register(_stream(messages))
        assert store.get_dictionary(SCOPE, sets[2].digest) is None
        # A damaged one is replaced: it takes no room beside itself.
        store.put_dictionary(SCOPE, sets[1].digest, b"damaged")
        with raises(errors.UnknownDictionary):
            request = dict_pb.FetchRequest(digest=sets[1].digest)
            _ = [p async for p in services.dictionaries.Fetch(request)]
        messages = registration(sets[1].to_bytes(), sets[1].digest)
        assert (await services.dictionaries.Register(_stream(messages))).added
        assert store.get_dictionary(SCOPE, sets[1].digest) == sets[1].to_bytes()


async def test_a_damaged_set_does_not_hide_the_others_from_a_list() -> None:
    good, bad = (random_set(layers=1, head_dim=8, atoms=16, seed=i) for i in range(2))
    store = MemoryStore()
    store.put_dictionary(SCOPE, good.digest, good.to_bytes())
    store.put_dictionary(SCOPE, bad.digest, b"damaged")
    async with running(store) as services:
        (info,) = (await services.dictionaries.List(dict_pb.ListRequest())).dictionaries
        assert info.digest == good.digest


async def test_built_in_sets_are_registered_once_the_store_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(MemoryStore):
        tries = 0

        def get_dictionary(self, scope: bytes, digest: bytes) -> bytes | None:
            self.tries += 1
            if self.tries < 3:
                raise errors.StoreUnavailable("away")
            if self.tries > 10:
                raise errors.ConfigurationError("refused")
            return super().get_dictionary(scope, digest)

    monkeypatch.setattr(run, "RETRY_S", 0.01)
    store, tried = Away(), asyncio.Event()
    await run._register_when_possible(store, tried)
    assert store.tries == 2 + len(builtin_sets())
    assert [r.getMessage() for r in caplog.records] == [
        "built-in sets wait for the store reason=store-unavailable"
    ]
    shipped = {load_builtin(name).digest for name in builtin_sets()}
    assert set(store.list_dictionaries(SHARED_SCOPE)) == shipped
    store.tries = 10
    with pytest.raises(errors.ConfigurationError):
        await run._register_when_possible(store, tried)


@pytest.mark.parametrize("damaged", [False, True])
async def test_built_in_sets_come_back(damaged: bool) -> None:
    dictionary = load_builtin(builtin_sets()[0])
    digest, data = dictionary.digest, dictionary.to_bytes()
    store = MemoryStore()
    register_builtin_sets(store)
    assert store.get_dictionary(SHARED_SCOPE, digest) == data
    if damaged:
        store.put_dictionary(SHARED_SCOPE, digest, b"damaged")
        register_builtin_sets(store)
        assert store.get_dictionary(SHARED_SCOPE, digest) == data
        store.put_dictionary(SHARED_SCOPE, digest, b"damaged")
    else:
        store = MemoryStore()  # as after FLUSHALL
    async with running(store) as services:
        request = dict_pb.FetchRequest(digest=digest)
        pieces = [p.data async for p in services.dictionaries.Fetch(request)]
        assert b"".join(pieces) == data
        assert store.get_dictionary(SHARED_SCOPE, digest) == data


async def test_a_built_in_set_is_served_by_a_full_store_too() -> None:
    class Full(MemoryStore):
        def put_dictionary(self, scope: bytes, digest: bytes, data: object) -> None:
            raise errors.Busy("full")

    dictionary = load_builtin(builtin_sets()[0])
    async with running(Full()) as services:
        request = dict_pb.FetchRequest(digest=dictionary.digest)
        pieces = [p.data async for p in services.dictionaries.Fetch(request)]
        assert b"".join(pieces) == dictionary.to_bytes()


class Hanging(MemoryStore):
    """Answers `present` once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.go = threading.Event()

    def present(self, scope: bytes, keys: Sequence[bytes]) -> list[bool]:
        self.calls += 1
        self.go.wait(PATIENCE_S)
        return super().present(scope, keys)


async def test_every_match_is_answered_in_time_by_a_store_that_hangs() -> None:
    store = Hanging()
    async with running(store, store_threads=2, max_calls=32) as services:
        request = pb.MatchRequest(page_keys=KEYS[:2])
        calls = [services.reload.Match(request) for _ in range(40)]

        def answered() -> int:
            return sum(call.done() for call in calls)

        await until(lambda: answered() == 8, "answers to the calls that are too many", answered)
        skip_ahead()
        codes = [await call.code() for call in calls]
        assert codes.count(grpc.StatusCode.DEADLINE_EXCEEDED) == 32
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 8
        with raises(errors.Busy):  # threads and queue are still taken: nothing piles up
            await services.reload.Match(request)
        store.go.set()
        while await (call := services.reload.Match(request)).code() is not grpc.StatusCode.OK:
            await asyncio.sleep(0)  # until the threads are free
        assert list((await call).present) == [False, False]
        assert store.calls == 3  # what nobody waited for never began
