"""What a store's servers say of themselves, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Of all servers that keep pages, added up. What was counted begins anew where one restarts."""

    used_bytes: int = 0
    """Memory in use."""
    max_bytes: int = 0
    """The bound on it; 0 where one server has none."""
    evictions: int = 0
    """Keys that were let go for want of room."""
    expiries: int = 0
    """Keys whose time was over."""
    connections: int = 0
    """Connections to them, of all who have any."""

    @classmethod
    def of(cls, servers: Iterable[Mapping[str, str]]) -> Self:
        """What INFO of each server says."""
        found = [
            [_number(info, name) for name in ("used_memory", "maxmemory", *_COUNTED)]
            for info in servers
        ]
        used, most, *counted = (sum(column) for column in zip(*found, strict=True))
        unbounded = any(not maximum for _, maximum, *_ in found)
        return cls(used, 0 if unbounded else most, *counted)


_COUNTED = ("evicted_keys", "expired_keys", "connected_clients")


def _number(info: Mapping[str, str], name: str) -> int:
    text = info.get(name, "").strip()
    return int(text) if text.isdecimal() else 0
