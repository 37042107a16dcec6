"""The reload server's reads: bytes held at once, frames read at a time, lengths asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_proto.v1 import reload_pb2 as pb
from lexico_services.reload import frame_reader
from lexico_store import MemoryStore
from lexico_store.room import Frame, Room
from tests.support.reload_pages import (
    KEYS,
    MIB,
    fill,
    frame_of,
)
from tests.support.reload_server import nothing_buffered, running
from tests.support.waiting import PATIENCE_S, lingering, until


class Measuring(MemoryStore):
    """Notes how many frames are asked for, and can hold the reads up."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.measured: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def read_frames(
        self, scope: bytes, places: Sequence[tuple[bytes, int]], room: Room | None = None
    ) -> list[Frame | None]:
        self.reads.append(len(places))
        self.go.wait(PATIENCE_S)
        return super().read_frames(scope, places, room)

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


async def test_small_frames_are_read_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reader, "BATCH_BYTES", 30 * 300)
    store = Measuring()
    for page in range(20):
        fill(store, page, 3)
    async with running(store, max_buffered_bytes=MAX_FRAME_BYTES) as services:
        await services.get(KEYS, 3)
        assert services.server.buffers.peak == 2 * 30 * 300  # one is sent, one is read
    assert store.reads == [30, 30]  # and one ends the second group
    assert store.measured == [60]


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
    assert store.reads == [1, 1, 1, 2, 2]  # the first ones are shorter: the caller waits for them


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
