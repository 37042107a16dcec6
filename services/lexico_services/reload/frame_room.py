"""Where the frames of a batch are put: into the messages that will carry them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lexico_codec.get_messages import FrameMessages
from lexico_store.room import Frame, Runs


class Place(NamedTuple):
    """Where a frame belongs in a Get, and what it takes."""

    group: int
    page: int
    """Position in the request."""
    length: int
    """Bytes; 0 for one that is known to be absent."""


class FrameRoom:
    """Room for frames, by their position in a batch. A `lexico_store.room.Room`.

    The allocator keeps what is freed (`lexico_worker.malloc`), so that the messages of one batch
    lie where those of an earlier one lay: new pages would be the kernel's work.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._messages = [FrameMessages(page, group, length) for group, page, length in places]

    def __call__(self, at: int, length: int) -> Runs:
        """Room for a frame; elsewhere, for one that is not as long as was said."""
        if length != self._places[at].length:
            return (memoryview(bytearray(length)),)
        return self._messages[at].runs

    def filled(self, at: int, frame: Frame | None) -> Runs | None:
        """Where the frame that a store gave for this position lies in the messages; None for one
        that is not there, or not as long as was said. A copy of the store's own is put there.
        """
        runs = self._messages[at].runs
        if frame is None:
            return None
        if isinstance(frame, bytes):
            if len(frame) != self._places[at].length:
                return None
            start = 0
            for run in runs:
                run[:] = memoryview(frame)[start : start + len(run)]
                start += len(run)
            return runs
        return runs if sum(map(len, frame)) == self._places[at].length else None

    def messages(self, at: int) -> FrameMessages:
        """Those that carry the frame of this position, which has been put there."""
        return self._messages[at]
