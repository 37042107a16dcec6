"""Frames from the store, batch by batch, within a budget of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from enum import StrEnum
from typing import Final, Protocol

from lexico_codec.get_messages import FrameMessages
from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_services.admission import ByteBudget
from lexico_services.reload.frame_room import FrameRoom, Place

BATCH_BYTES: Final = 8 << 20
"""Most bytes of frames that are read in one round trip, unless a single frame has more."""
FIRST_BYTES: Final = 1 << 20
"""The same of a Get's first batch: the caller waits for it. Each one after it may have twice as
many, up to `BATCH_BYTES`."""

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


Found = FrameMessages | Absence
"""A frame that is sound, in its messages, or why there is none."""


class FrameSource(Protocol):
    """The pages of one Get. Calls block."""

    def frame_bytes(self, groups: Sequence[int]) -> list[list[int]]:
        """Lengths of frames, `[group][page]`; 0 for one that is not there."""

    def read(self, places: Sequence[Place], room: FrameRoom) -> list[Found]:
        """The frame of each place. It is sound and exactly as long as was said."""


class FrameBatch:
    """Frames that follow each other in a Get, on their way from the store or here."""

    def __init__(
        self,
        places: Sequence[Place],
        read: asyncio.Future[list[Found]],
        taken: int,
        buffers: ByteBudget,
    ) -> None:
        """
        Args:
            places: which frames.
            read: the thread's work.
            taken: bytes of `buffers` that this batch holds.
            buffers: where to give them back.
        """
        self.places = places
        self.frames: list[Found] = []
        """One a place, once arrived."""
        self._read: asyncio.Future[list[Found]] | None = read
        self._taken = taken
        self._buffers = buffers
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
            self._hold(0)

    def _settle(self, read: asyncio.Future[list[Found]]) -> None:
        """Holds what the frames have in place of what they might have had."""
        if read.cancelled():  # and the thread may still be at it
            self._hold(0)
            return
        if read.exception() is not None:
            self._hold(0)
            return
        self._read = None
        if self._dropped:
            self._hold(0)
            return
        self.frames = read.result()
        pairs = zip(self.places, self.frames, strict=True)
        self._hold(sum(p.length for p, found in pairs if not isinstance(found, Absence)))

    def _hold(self, size: int) -> None:
        surplus, self._taken = self._taken - size, size
        self._buffers.give_back(surplus)


class FrameReader:
    """Starts the reads of one Get, in its order: group 0 of every page, then group 1, and so on.
    A batch may end one group and begin the next.
    """

    def __init__(
        self,
        source: FrameSource,
        pages: int,
        groups: int,
        buffers: ByteBudget,
        threads: Executor,
    ) -> None:
        """
        Args:
            source: where frames and their lengths come from.
            pages: pages asked for.
            groups: frames of each.
            buffers: bound on the bytes of frames that are read or held.
            threads: where the source blocks.
        """
        self.limit = pages
        """Pages that are still given: reads stop there."""
        self._source = source
        self._groups = groups
        self._buffers = buffers
        self._threads = threads
        self._group = self._page = 0  # of the next frame
        self._missing = pages  # the first page that is known to lack a frame
        self._batch_bytes = min(FIRST_BYTES, BATCH_BYTES)
        self._lengths: dict[int, list[int]] = {}
        """Group → lengths of its frames, for the groups to come that were asked for."""

    async def start(self) -> FrameBatch | None:
        """The next batch, once there is room for it; None at the end."""
        if not self._go_on():
            return None
        if self._group not in self._lengths:
            await self._measure()
        places = self._batch()
        if size := _bytes(places):
            await self._buffers.wait(size, 1)
        return self._started(places)

    def start_if_spare(self) -> FrameBatch | None:
        """The next batch, if its lengths are known, there is room now and it is not the end."""
        if not self._go_on() or self._group not in self._lengths:
            return None
        places = self._batch()
        if (size := _bytes(places)) and not self._buffers.take_spare(size, 1):
            return None
        return self._started(places)

    def _go_on(self) -> bool:
        """Whether anything is left; goes on to the next group where one is done."""
        if self._page >= self._end:
            self._lengths.pop(self._group, None)
            self._group, self._page = self._group + 1, 0
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

    def _batch(self) -> list[Place]:
        """The frames to read next, at least one, of the groups whose lengths are known. What cannot
        be a frame counts nothing: it is not read, and ends the prefix.
        """
        batch: list[Place] = []
        size, group, page = 0, self._group, self._page
        while group in self._lengths and self._end > 0:
            if page >= self._end:
                group, page = group + 1, 0
                continue
            length = self._lengths[group][page]
            if not 0 < length <= MAX_FRAME_BYTES:
                self._missing, length = page, 0
            elif batch and size + length > self._batch_bytes:
                break
            batch.append(Place(group, page, length))
            size, page = size + length, page + 1
        return batch

    def _started(self, places: Sequence[Place]) -> FrameBatch:
        last, size = places[-1], _bytes(places)
        self._group, self._page = last.group, last.page + 1
        self._batch_bytes = min(2 * self._batch_bytes, BATCH_BYTES)
        loop = asyncio.get_running_loop()
        try:
            room = FrameRoom(places)
            read = loop.run_in_executor(self._threads, self._source.read, places, room)
        except BaseException:
            self._buffers.give_back(size)
            raise
        return FrameBatch(places, read, size, self._buffers)


def _bytes(places: Sequence[Place]) -> int:
    return sum(place.length for place in places)
