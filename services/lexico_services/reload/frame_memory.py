"""Memory that frames are read into, used again and again: new pages of it are the kernel's work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

UNIT_BYTES: Final = 8 << 20
"""Pieces of memory are whole multiples of it. What is never written takes no memory."""
IDLE_PIECES: Final = 4
"""Most that are kept for later."""


class FrameMemory:
    """Lends pieces of memory, one a batch. For one event loop."""

    def __init__(self) -> None:
        self._idle: list[bytearray] = []

    def lend(self, lengths: Sequence[int]) -> Piece:
        """A piece with room for frames of these lengths. It holds what others left there."""
        size = max(1, -(-sum(lengths) // UNIT_BYTES)) * UNIT_BYTES
        for memory in self._idle:
            if len(memory) == size:
                self._idle.remove(memory)
                return Piece(memory, lengths)
        return Piece(bytearray(size), lengths)

    def take_back(self, piece: Piece) -> None:
        """Nobody reads or writes the piece any more. Larger ones are not kept: they are rare."""
        memory = piece.memory
        if len(memory) == UNIT_BYTES and len(self._idle) < IDLE_PIECES:
            self._idle.append(memory)


class Piece:
    """Memory of one batch: its frames behind each other. A `lexico_store.room.Room`."""

    def __init__(self, memory: bytearray, lengths: Sequence[int]) -> None:
        self.memory = memory
        self._lengths = lengths
        self._starts = list(accumulate(lengths, initial=0))

    def __call__(self, place: int, length: int) -> memoryview:
        """Room for a frame; elsewhere, for one that is not as long as was said."""
        if length != self._lengths[place]:
            return memoryview(bytearray(length))
        start = self._starts[place]
        return memoryview(self.memory)[start : start + length]
