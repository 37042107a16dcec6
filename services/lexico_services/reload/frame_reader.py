"""Frames from the store, batch by batch, within a budget of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from enum import StrEnum
from functools import partial
from typing import Final, Protocol

from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_services.admission import ByteBudget
from lexico_services.reload.frame_memory import UNIT_BYTES, FrameMemory, Piece
from lexico_store.room import Frame, Room

BATCH_BYTES: Final = UNIT_BYTES
"""Most bytes of frames that are read in one round trip, unless a single frame has more."""

MEASURED_FRAMES: Final = 1024
"""Frames whose lengths are asked for in one round trip, or those of one layer group."""


class Absence(StrEnum):
    """Why a frame cannot be given: as `MISS_REASONS` of `lexico_proto.metrics`."""

    ABSENT = "absent"
    """It is not there, or not as long any more as was said."""
    DAMAGED = "damaged"
    """It was; its page is removed."""
    NEWER = "newer"
    """A newer release wrote it; it stays."""


Found = Frame | Absence
"""A frame that is sound, or why there is none."""


class FrameSource(Protocol):
    """The pages of one Get. Calls block."""

    def frame_bytes(self, groups: Sequence[int]) -> list[list[int]]:
        """Lengths of frames, `[group][page]`; 0 for one that is not there."""

    def read(self, group: int, first: int, lengths: Sequence[int], room: Room) -> list[Found]:
        """One frame of each page from position `first` on, in the room or elsewhere. A frame is
        sound and exactly as long as was said.
        """


class FrameBatch:
    """Frames of one group of consecutive pages, on their way from the store or here."""

    def __init__(
        self,
        group: int,
        first: int,
        read: asyncio.Future[list[Found]],
        taken: int,
        buffers: ByteBudget,
        piece: Piece,
        memory: FrameMemory,
    ) -> None:
        """
        Args:
            group: which frame of the pages.
            first: position of the first page in the request.
            read: the thread's work.
            taken: bytes of `buffers` that this batch holds.
            buffers: where to give them back.
            piece: where the thread puts frames.
            memory: where to give it back.
        """
        self.group = group
        self.first = first
        self.frames: list[Found] = []
        """One a page, once arrived."""
        self._read: asyncio.Future[list[Found]] | None = read
        self._taken = taken
        self._buffers = buffers
        self._piece: Piece | None = piece
        self._memory = memory
        self._dropped = False
        read.add_done_callback(self._settle)

    async def arrive(self) -> None:
        """Waits for the frames.

        Raises:
            LexicoError: the store could not give them.
        """
        if self._read is not None:
            await asyncio.wait([self._read])  # does not end the read where this call is cancelled
        if self._read is not None:
            self._read.result()

    def drop(self) -> None:
        """Lets go of the frames, now or once the thread is done with them: nobody may have one of
        them any more. Idempotent.
        """
        self._dropped = True
        self.frames.clear()  # an error that is on its way to the caller may keep this object alive
        if self._read is None:
            self._let_go()

    def _settle(self, read: asyncio.Future[list[Found]]) -> None:
        """Holds what the frames have in place of what they might have had."""
        if read.cancelled():  # and the thread may still be at it
            self._piece = None
            self._let_go()
            return
        if read.exception() is not None:
            self._let_go()
            return
        self._read = None
        if self._dropped:
            self._let_go()
        else:
            self.frames = read.result()
            self._hold(sum(len(f) for f in self.frames if not isinstance(f, Absence)))

    def _let_go(self) -> None:
        self._hold(0)
        piece, self._piece = self._piece, None
        if piece is not None:
            self._memory.take_back(piece)

    def _hold(self, size: int) -> None:
        surplus, self._taken = self._taken - size, size
        self._buffers.give_back(surplus)


class FrameReader:
    """Starts the reads of one Get, in its order: group 0 of every page, then group 1, and so on."""

    def __init__(
        self,
        source: FrameSource,
        pages: int,
        groups: int,
        buffers: ByteBudget,
        memory: FrameMemory,
        threads: Executor,
    ) -> None:
        """
        Args:
            source: where frames and their lengths come from.
            pages: pages asked for.
            groups: frames of each.
            buffers: bound on the bytes of frames that are read or held.
            memory: where they are put.
            threads: where the source blocks.
        """
        self.limit = pages
        """Pages that are still given: reads stop there."""
        self._source = source
        self._groups = groups
        self._buffers = buffers
        self._memory = memory
        self._threads = threads
        self._group = self._first = 0
        self._missing = pages  # the first page that is known to lack a frame
        self._lengths: dict[int, list[int]] = {}
        """Group → lengths of its frames, for the groups to come that were asked for."""

    async def start(self) -> FrameBatch | None:
        """The next batch, once there is room for it; None at the end."""
        if not self._go_on():
            return None
        if self._group not in self._lengths:
            await self._measure()
        lengths = self._batch()
        if size := sum(lengths):
            await self._buffers.wait(size, 1)
        return self._started(lengths)

    def start_if_spare(self) -> FrameBatch | None:
        """The next batch, if its lengths are known, there is room now and it is not the end."""
        if not self._go_on() or self._group not in self._lengths:
            return None
        lengths = self._batch()
        if (size := sum(lengths)) and not self._buffers.take_spare(size, 1):
            return None
        return self._started(lengths)

    def _go_on(self) -> bool:
        """Whether anything is left; goes on to the next group where one is done."""
        if self._first >= self._end:
            self._lengths.pop(self._group, None)
            self._group, self._first = self._group + 1, 0
        return self._group < self._groups and self._end > 0

    @property
    def _end(self) -> int:
        return min(self.limit, self._missing)

    async def _measure(self) -> None:
        count = max(1, MEASURED_FRAMES // self._end)
        groups = range(self._group, min(self._group + count, self._groups))
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._source.frame_bytes, groups)
        self._lengths = dict(zip(groups, found, strict=True))

    def _batch(self) -> list[int]:
        """Lengths of the frames to read next, at least one. What cannot be a frame counts nothing:
        it is not read, and ends the prefix.
        """
        batch: list[int] = []
        size = 0
        for page in range(self._first, self._end):
            length = self._lengths[self._group][page]
            if batch and size + length > BATCH_BYTES:
                break
            if not 0 < length <= MAX_FRAME_BYTES:
                self._missing = page
                return [*batch, 0]
            batch.append(length)
            size += length
        return batch

    def _started(self, lengths: list[int]) -> FrameBatch:
        group, first, self._first = self._group, self._first, self._first + len(lengths)
        loop, piece = asyncio.get_running_loop(), self._memory.lend(lengths)
        try:
            read = loop.run_in_executor(
                self._threads, partial(self._source.read, group, first, lengths, piece)
            )
        except BaseException:
            self._buffers.give_back(sum(lengths))
            raise
        return FrameBatch(group, first, read, sum(lengths), self._buffers, piece, self._memory)
