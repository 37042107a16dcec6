"""Frames go from the store into the messages that carry them, across groups and never twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as pb
from lexico_services.admission import ByteBudget
from lexico_services.reload import frame_reader
from lexico_services.reload.frame_reader import Absence, Found, FrameReader
from lexico_services.reload.frame_room import FrameRoom, Place

LONG = PIECE_BYTES + 7


def carried(found: Found) -> bytes:
    """The frame of a place as a caller gets it."""
    assert not isinstance(found, Absence)
    return b"".join(pb.GetResponse.FromString(m).frame.data for m in found.sealed())


def test_a_frame_lies_in_its_messages() -> None:
    room, frame = FrameRoom([Place(2, 5, 3), Place(2, 6, LONG)]), bytes(range(251)) * 5000
    for run, start in zip(room(1, LONG), (0, PIECE_BYTES), strict=True):
        run[:] = frame[start : start + len(run)]
    assert room.filled(1, room(1, LONG)) is not None
    assert carried(room.messages(1)) == frame[:LONG]
    messages = list(FrameRoom([Place(2, 5, 3)]).messages(0).sealed())
    assert [pb.GetResponse.FromString(m).frame.page for m in messages] == [5]


def test_a_copy_of_the_stores_own_is_put_there() -> None:
    room, frame = FrameRoom([Place(0, 0, LONG)]), bytes(range(251)) * 5000
    assert room.filled(0, frame[:LONG]) is not None
    assert carried(room.messages(0)) == frame[:LONG]


def test_a_frame_of_another_length_has_room_elsewhere() -> None:
    room = FrameRoom([Place(0, 0, 3), Place(0, 1, 5)])
    (elsewhere,) = room(0, 9)
    elsewhere[:] = b"too long!"
    assert room.filled(0, (elsewhere,)) is None
    assert room.filled(1, b"four") is None
    assert room.filled(1, None) is None


class Slow:
    """Frames of three bytes, the first page's of four, that come once they are let."""

    def __init__(self, *absent: tuple[int, int]) -> None:
        self.go = threading.Event()
        self.absent = absent
        self.reads: list[list[tuple[int, int]]] = []

    def frame_bytes(self, groups: Sequence[int]) -> list[list[int]]:
        return [
            [0 if (group, page) in self.absent else 4 - min(page, 1) for page in range(3)]
            for group in groups
        ]

    def read(self, places: Sequence[Place], room: FrameRoom) -> list[Found]:
        self.go.wait()
        self.reads.append([(place.group, place.page) for place in places])
        found: list[Found] = []
        for at, place in enumerate(places):
            for run in room(at, place.length):
                run[:] = bytes([65 + place.group]) * len(run)
            found.append(room.messages(at) if place.length else Absence.ABSENT)
        return found


async def all_reads(source: Slow, groups: int) -> list[list[tuple[int, int]]]:
    """What a reader asks for until the end, batch by batch."""
    source.go.set()
    with ThreadPoolExecutor(1) as threads:
        reader = FrameReader(source, 3, groups, ByteBudget(1000), threads)
        while (batch := await reader.start()) is not None:
            await batch.arrive()
            batch.drop()
    return source.reads


async def test_batches_go_across_groups_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reader, "FIRST_BYTES", 7)
    monkeypatch.setattr(frame_reader, "BATCH_BYTES", 20)
    reads = await all_reads(Slow(), 4)
    order = [(group, page) for group in range(4) for page in range(3)]
    assert reads == [order[:2], order[2:6], order[6:12]]  # of 7, 13 and 20 bytes


async def test_no_page_behind_one_that_lacks_a_frame() -> None:
    reads = await all_reads(Slow((1, 1)), 3)
    assert reads == [[(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]]


@pytest.mark.parametrize("arrives", [True, False])
async def test_bytes_come_back_once_the_thread_is_done(arrives: bool) -> None:
    source, budget = Slow(), ByteBudget(1000)
    with ThreadPoolExecutor(2) as threads:
        reader = FrameReader(source, 3, 2, budget, threads)
        batch = await reader.start()
        assert batch is not None
        if not arrives:
            batch.drop()  # its caller is gone, and the thread is still at it
        assert budget.used == 20
        source.go.set()
        await batch.arrive()
        if arrives:
            assert [carried(found) for found in batch.frames[2:4]] == [b"AAA", b"BBBB"]
            assert budget.used == 20
            batch.drop()
        while budget.used:
            await asyncio.sleep(0)
        assert batch.frames == []
