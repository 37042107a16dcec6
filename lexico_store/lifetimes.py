"""How long pages live: a page never outlives the page before it.

A prefix match ends at the first page that is missing, so a page whose predecessor is gone is of no
use to anyone. Pages of a sequence are therefore renewed together, and each expires a little before
the one ahead of it. Expiries decide what a full store lets go as well (volatile-ttl): the ends of
the sequences that were not used for longest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import InvalidInput

PAGE_LAG_MS: Final = 10
"""How much sooner a page expires than the page before it. Far below the time between two uses of a
prefix, so that it decides nothing else, and above a server's resolution of a millisecond."""

PART_PAGES: Final = 4096
PART_LAG_MS: Final = 120_000
"""A call that begins within a sequence comes after the one that renewed the pages before it, by the
life of a stream at most: what it renews expires so much sooner, for every `PART_PAGES` ahead."""

LINGER_MS: Final = 30 * 86_400_000
"""Expiry of leases and marks, whose time is in their value: later than that of pages, so that a
full store does not let them go first."""

ALL_NAMESPACES: Final = b"*"
"""Field of a tenant's generations that stands for all of its namespaces."""
MAX_FORGOTTEN: Final = 4096
"""Namespaces of a tenant that are forgotten one by one; the record never expires."""
MAX_PAGE: Final = 1 << 24
"""No sequence has so many pages."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a store has of a sequence."""

    scope: bytes
    """Scope of the generation that is in force: pages are read and committed under it."""
    generation: int
    """When pages of this namespace were forgotten last, in microseconds since 1970; 0 if never."""
    present: list[bool]
    """Whether each page is there, in the order asked."""


def prefix_lives_ms(ttl_ms: int, first: int, count: int) -> list[int]:
    """Milliseconds that `count` pages of a sequence live, of which `first` is the first one's
    index: each less than the one before, and none less than half of `ttl_ms`.

    Raises:
        InvalidInput: an index that no page has.
    """
    if not 0 <= first <= first + count <= MAX_PAGE:
        raise InvalidInput(f"pages {first}..{first + count} of a sequence: outside 0..{MAX_PAGE}")
    lag = -(-first // PART_PAGES) * PART_LAG_MS
    most = ttl_ms // 2
    return [ttl_ms - min(most, lag + page * PAGE_LAG_MS) for page in range(first, first + count)]


def page_life_ms(ttl_ms: int, page: int) -> int:
    """Milliseconds that the page of this index lives, where nothing ahead of it comes later.

    Raises:
        InvalidInput: an index that no page has.
    """
    if not 0 <= page <= MAX_PAGE:
        raise InvalidInput(f"page {page} of a sequence: outside 0..{MAX_PAGE}")
    return ttl_ms - min(ttl_ms // 2, page * PAGE_LAG_MS)


def now_us() -> int:
    """Microseconds since 1970, by which what was forgotten is told from what came later."""
    return time.time_ns() // 1000


def newest(generations: Sequence[bytes | None]) -> int:
    """The generation that several of them make: the last."""
    return max((int(number) for number in generations if number), default=0)
