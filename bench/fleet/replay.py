"""A trace of prompts replayed against stores, and against eviction policies in simulation.

A request is the list of its pages' ids, as the Mooncake trace gives them (`hash_ids`, blocks of 512
tokens). It hits the leading pages that are there; then all of it is stored.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lexico_store import PageStore

SCOPE, NAMESPACE = b"bench-fleet-tenant", b"n" * 32
TTL_S = 86_400.0


@dataclass(frozen=True)
class Request:
    """One prompt."""

    at_s: float
    pages: tuple[int, ...]


def read_trace(path: Path, most: int) -> list[Request]:
    """The first requests of a trace."""
    with path.open() as lines:
        found = [json.loads(line) for _, line in zip(range(most), lines, strict=False)]
    return [Request(each["timestamp"] / 1000, tuple(each["hash_ids"])) for each in found]


class Cache(Protocol):
    """What is replayed against."""

    def serve(self, pages: Sequence[int]) -> int:
        """Pages that are hit. Afterwards all of them were used, as far as there is room."""


class StoreCache:
    """A page store, asked as a node asks: a match that renews, then the missing pages."""

    def __init__(self, store: PageStore, page_bytes: int) -> None:
        self._store = store
        self._page = bytes(page_bytes)

    def serve(self, pages: Sequence[int]) -> int:
        keys = [key_of(page) for page in pages]
        found = self._store.match(SCOPE, NAMESPACE, keys, renew_s=TTL_S)
        for at, (key, present) in enumerate(zip(keys, found.present, strict=True)):
            if not present:
                self._store.commit(SCOPE, key, [self._page], TTL_S, page=at)
        return leading(found.present)


class RankedCache:
    """Room for a number of pages; the page of the lowest rank goes first.

    Args:
        room: pages.
        rank: of a page, from how often and when it was used, and its place in the prompt.
    """

    def __init__(self, room: int, rank: Callable[[int, int, int], tuple[int, ...]]) -> None:
        self._room = room
        self._rank = rank
        self._ranks: dict[int, tuple[int, ...]] = {}
        self._uses: dict[int, int] = {}
        self._queue: list[tuple[tuple[int, ...], int]] = []
        self._turn = 0

    def serve(self, pages: Sequence[int]) -> int:
        self._turn += 1
        hits = leading([page in self._ranks for page in pages])
        for at, page in enumerate(pages):
            uses = self._uses[page] = self._uses.get(page, 0) + 1
            rank = self._ranks[page] = self._rank(uses, self._turn, at)
            heapq.heappush(self._queue, (rank, page))
        while len(self._ranks) > self._room:
            rank, page = heapq.heappop(self._queue)
            if self._ranks.get(page) == rank:
                del self._ranks[page], self._uses[page]
        return hits


def lru(room: int) -> RankedCache:
    """Least recently used first, of one prompt the last page first."""
    return RankedCache(room, lambda _, turn, at: (turn, -at))


def lfu(room: int) -> RankedCache:
    """Least often used first, then as LRU."""
    return RankedCache(room, lambda uses, turn, at: (uses, turn, -at))


def hit_rate(
    cache: Cache, trace: Sequence[Request], tick: Callable[[float], None] = lambda _: None
) -> float:
    """Pages hit over pages asked for."""
    hits = asked = 0
    for request in trace:
        tick(request.at_s)
        hits += cache.serve(request.pages)
        asked += len(request.pages)
    return hits / asked


def key_of(page: int) -> bytes:
    """A page's key."""
    return page.to_bytes(32, "big")


def leading(present: Sequence[bool]) -> int:
    """How many are there before the first that is not."""
    return [*present, False].index(False)
