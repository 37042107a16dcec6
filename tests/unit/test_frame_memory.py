"""Memory of batches is used again, and never by two at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from lexico_services.admission import ByteBudget
from lexico_services.reload.frame_memory import IDLE_PIECES, UNIT_BYTES, FrameMemory
from lexico_services.reload.frame_reader import Found, FrameReader
from lexico_store.room import Room


def test_frames_lie_behind_each_other() -> None:
    piece = FrameMemory().lend([3, 5, 0])
    piece(1, 5)[:] = b"later"
    piece(0, 3)[:] = b"one"
    assert bytes(piece.memory[:8]) == b"onelater"
    assert len(piece(2, 0)) == 0


def test_a_frame_of_another_length_has_room_elsewhere() -> None:
    piece = FrameMemory().lend([3, 5])
    piece(0, 9)[:] = b"too long!"
    assert bytes(piece.memory[:9]) == bytes(9)


def test_what_came_back_is_lent_again() -> None:
    memory = FrameMemory()
    first, second = memory.lend([10]), memory.lend([UNIT_BYTES])
    assert first.memory is not second.memory
    memory.take_back(first)
    assert memory.lend([UNIT_BYTES - 1]).memory is first.memory


def test_little_is_kept() -> None:
    memory = FrameMemory()
    pieces = [memory.lend([1]) for _ in range(IDLE_PIECES + 3)]
    large = memory.lend([UNIT_BYTES + 1])
    assert len(large.memory) == 2 * UNIT_BYTES
    for piece in [large, *pieces]:
        memory.take_back(piece)
    again = [memory.lend([1]).memory for _ in range(len(pieces))]
    known = [piece.memory for piece in pieces]
    assert sum(any(each is other for other in known) for each in again) == IDLE_PIECES


class Slow:
    """A source that writes into its room when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def frame_bytes(self, groups: Sequence[int]) -> list[list[int]]:
        return [[4, 4] for _ in groups]

    def read(self, group: int, first: int, lengths: Sequence[int], room: Room) -> list[Found]:
        self.go.wait()
        frames: list[Found] = []
        for place, length in enumerate(lengths):
            view = room(place, length)
            view[:] = bytes([65 + group]) * length
            frames.append(view)
        return frames


@pytest.mark.parametrize("arrives", [True, False])
async def test_memory_comes_back_once_the_thread_is_done(arrives: bool) -> None:
    memory, source, budget = FrameMemory(), Slow(), ByteBudget(1000)
    with ThreadPoolExecutor(2) as threads:
        reader = FrameReader(source, 2, 2, budget, memory, threads)
        batch = await reader.start()
        assert batch is not None
        if not arrives:
            batch.drop()  # its caller is gone, and the thread is still at it
        other = memory.lend([8])
        source.go.set()
        await batch.arrive()
        if arrives:
            assert batch.frames == [b"AAAA", b"AAAA"]
            batch.drop()
        while budget.used:
            await asyncio.sleep(0)
        assert memory.lend([8]).memory is not other.memory
        assert bytes(other.memory[:8]) == bytes(8)
