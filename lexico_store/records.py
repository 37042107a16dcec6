"""Small hashes beside the pages: what a store keeps for the ledger."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import IntEnum


class PinNote(IntEnum):
    """What became of a pin that was to be noted."""

    NOTED = 1
    OVER = 0
    """All pins together would hold more bytes than they may."""
    FULL = -1
    """There are as many pins as there may be."""
    CHANGED = -2
    """Somebody else has noted or removed this pin since it was read."""


class Records(ABC):
    """Hashes that are small, are named in `keys`, never expire and are not evicted. For this
    package; every call may raise what a store's may."""

    @abstractmethod
    def read_record(self, name: str, fields: Sequence[bytes] | None = None) -> dict[bytes, bytes]:
        """Fields of a record, those of them that are there; None for all."""

    @abstractmethod
    def write_record(self, name: str, values: Mapping[bytes, bytes]) -> None:
        """Sets fields of a record, at least one."""

    @abstractmethod
    def remove_fields(self, name: str, fields: Sequence[bytes]) -> None:
        """Removes fields of a record, at least one; a record without any is gone."""

    @abstractmethod
    def sample_record(self, name: str, count: int) -> tuple[int, dict[bytes, bytes]]:
        """How many fields a record has, and up to `count` of them, drawn by chance."""

    @abstractmethod
    def note_pin(
        self, name: str, pin: bytes, value: bytes, former: bytes, most_bytes: int, most_pins: int
    ) -> PinNote:
        """Sets a field of a record of pins in one atomic step, if it may be set.

        Args:
            name: of the record.
            pin: the field.
            value: begins with a line that `pinned_bytes` reads.
            former: of the field, when it was read; empty for none.
            most_bytes: that all pins together may hold; below 0 for no bound.
            most_pins: that there may be.
        """


def pinned_bytes(value: bytes) -> int:
    """Bytes that a pin says that its pages hold."""
    return int(json.loads(value.partition(b"\n")[0])["bytes"])


def judge_pin(
    record: Mapping[bytes, bytes],
    pin: bytes,
    value: bytes,
    former: bytes,
    most_bytes: int,
    most_pins: int,
) -> PinNote:
    """What `note_pin` comes to; the twin of lua/pin.lua."""
    there = record.get(pin, b"")
    if there not in (former, value):
        return PinNote.CHANGED
    others = [pinned_bytes(each) for name, each in record.items() if name != pin]
    if len(others) >= most_pins:
        return PinNote.FULL
    if 0 <= most_bytes < pinned_bytes(value) + sum(others):
        return PinNote.OVER
    return PinNote.NOTED
