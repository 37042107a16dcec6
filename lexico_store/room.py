"""Where a caller wants long values to be."""

from __future__ import annotations

from typing import Protocol

Runs = tuple[memoryview, ...]
"""Memory in one or several places, in order."""
Frame = bytes | Runs
"""One frame of a page: a copy of its own, or where the caller wanted it."""


class Room(Protocol):
    """Memory for the frames of one `PageStore.read`, given as their lengths become known."""

    def __call__(self, place: int, length: int) -> Runs:
        """Exactly `length` bytes for the frame at position `place` of those asked for.

        It may be called twice for one place, where a read is tried again: the second holds.
        """
