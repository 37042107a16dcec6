"""Leases in a real server."""

from __future__ import annotations

from typing import Any

from lexico_store import keys

LEASES = f"{keys.PREFIX}:h:*"


def held_leases(raw: Any) -> int:
    """How many are held now. A lease's name outlives it: its value says until when it is held.

    Args:
        raw: a plain redis-py client.
    """
    seconds, microseconds = raw.time()
    now_ms = 1000 * seconds + microseconds // 1000
    values = [raw.get(name) for name in raw.scan_iter(LEASES, count=1000)]
    return sum(int(value.partition(b":")[0]) > now_ms for value in values if value is not None)
