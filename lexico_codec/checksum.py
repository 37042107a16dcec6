"""The checksum of pages on the wire and of frames: XXH3-64."""

from __future__ import annotations

import xxhash


class Checksum:
    """XXH3-64 of bytes that come in pieces."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_64()

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """Takes the next piece."""
        self._digest.update(piece)

    def value(self) -> int:
        """Checksum of all pieces so far, 0..2^64-1."""
        value: int = self._digest.intdigest()
        return value
