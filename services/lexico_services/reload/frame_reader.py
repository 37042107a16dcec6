"""Frames from the store, batch by batch, within a budget of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_services.admission import ByteBudget
from lexico_services.config import ReloadConfig

BATCH_BYTES: Final = 8 << 20
"""Frames of about this many bytes are read in one round trip, or a single one that is longer."""

Read = Callable[[Sequence[bytes], int], list[bytes | None]]
"""`(keys, group)` → one frame of each page; blocks."""


class FrameBatch:
    """Frames of one group of consecutive pages, on their way from the store or here."""

    def __init__(
        self,
        group: int,
        first: int,
        read: asyncio.Future[list[bytes | None]],
        taken: int,
        buffers: ByteBudget,
    ) -> None:
        """
        Args:
            group: which frame of the pages.
            first: position of the first page in the request.
            read: the thread's work.
            taken: bytes of `buffers` that this batch holds.
            buffers: where to give them back.
        """
        self.group = group
        self.first = first
        self.frames: list[bytes | None] = []
        """One a page, once arrived."""
        self._read: asyncio.Future[list[bytes | None]] | None = read
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
        """Lets go of the frames, now or once the thread is done with them. Idempotent."""
        self._dropped = True
        self.frames.clear()  # an error that is on its way to the caller may keep this object alive
        if self._read is None:
            self._hold(0)

    def _settle(self, read: asyncio.Future[list[bytes | None]]) -> None:
        """Holds what the frames have in place of what they might have had."""
        if read.cancelled() or read.exception() is not None:
            self._hold(0)
            return
        self._read = None
        if self._dropped:
            self._hold(0)
        else:
            self.frames = read.result()
            self._hold(sum(len(frame) for frame in self.frames if frame is not None))

    def _hold(self, size: int) -> None:
        surplus, self._taken = self._taken - size, size
        self._buffers.give_back(surplus)


class FrameReader:
    """Starts the reads of one Get, in its order."""

    def __init__(
        self,
        read: Read,
        keys: Sequence[bytes],
        groups: int,
        config: ReloadConfig,
        buffers: ByteBudget,
        threads: Executor,
    ) -> None:
        self.limit = len(keys)
        """Pages that are still given: reads stop there."""
        self._read = read
        self._keys = keys
        self._groups = groups
        self._buffers = buffers
        self._threads = threads
        # Half of the budget: streams should read side by side.
        share = config.max_buffered_bytes // (2 * MAX_FRAME_BYTES)
        self._most = max(1, min(config.pages_per_read, share))
        self._longest = MAX_FRAME_BYTES  # until one was seen
        self._group = self._first = 0

    async def start(self) -> FrameBatch | None:
        """The next batch, once there is room for a page of it; None at the end."""
        wanted = self._wanted()
        if wanted == 0:
            return None
        return self._started(await self._buffers.wait(MAX_FRAME_BYTES, wanted))

    def start_if_spare(self) -> FrameBatch | None:
        """The next batch, if there is room now and it is not the end."""
        wanted = self._wanted()
        pages = self._buffers.take_spare(MAX_FRAME_BYTES, wanted) if wanted else 0
        return self._started(pages) if pages else None

    def _wanted(self) -> int:
        """Pages of the next batch."""
        if self._first >= self.limit:
            self._group, self._first = self._group + 1, 0
        if self._group >= self._groups or self.limit == 0:
            return 0
        return min(self._most, self.limit - self._first, max(1, BATCH_BYTES // self._longest))

    def _started(self, pages: int) -> FrameBatch:
        group, first, self._first = self._group, self._first, self._first + pages
        wanted = self._keys[first : first + pages]
        taken = pages * MAX_FRAME_BYTES
        loop = asyncio.get_running_loop()
        try:
            read = loop.run_in_executor(self._threads, self._read, wanted, group)
        except BaseException:
            self._buffers.give_back(taken)
            raise
        read.add_done_callback(self._learn)
        return FrameBatch(group, first, read, taken, self._buffers)

    def _learn(self, read: asyncio.Future[list[bytes | None]]) -> None:
        """Takes the frames that came last for the length of those to come."""
        if not read.cancelled() and read.exception() is None:
            self._longest = max(
                (len(frame) for frame in read.result() if frame), default=self._longest
            )
