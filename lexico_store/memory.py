"""A store in this process's memory: for tests, for one node alone, an oracle for the others."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import Busy, StoreUnavailable
from lexico_store.checks import Parts
from lexico_store.store import PageStore

DEFAULT_MAX_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class _Entry:
    """One page: its own copies of the frames, and the clock's time at which it is gone."""

    frames: tuple[bytes, ...]
    expires_s: float

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


class MemoryStore(PageStore):
    """Pages and dictionary sets in at most `max_bytes`; the page unused for longest goes first.

    Like Redis under volatile-lru: dictionary sets count but stay, and asking whether a page is
    present is no use of it.

    Args:
        max_bytes: bound on payload bytes, Python's own overhead not counted.
        clock: seconds, never going back; tests inject theirs.
    """

    def __init__(
        self, max_bytes: int = DEFAULT_MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._pages: OrderedDict[str, _Entry] = OrderedDict()
        self._leases: dict[str, tuple[bytes, float]] = {}
        self._dictionaries: dict[str, bytes] = {}
        self._listings: dict[str, set[bytes]] = {}
        self._held_bytes = 0
        self._closed = False

    def ping(self) -> None:
        with self._lock:
            self._check_open()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._pages.clear()
            self._leases.clear()
            self._dictionaries.clear()
            self._listings.clear()
            self._held_bytes = 0

    def _present(self, names: Sequence[str]) -> list[bool]:
        with self._lock:
            return [self._live(name) is not None for name in names]

    def _commit(self, name: str, frames: list[Parts], ttl_ms: int) -> None:
        # The copy is made before the lock is taken: it is the long part.
        copies = tuple(b"".join(frame) for frame in frames)
        with self._lock:
            self._check_open()
            entry = _Entry(copies, self._clock() + ttl_ms / 1000)
            self._drop(name)
            self._make_room(entry.size)
            self._pages[name] = entry
            self._held_bytes += entry.size

    def _read(self, names: Sequence[str], group: int) -> list[bytes | None]:
        with self._lock:
            entries = [self._used(name) for name in names]
        return [e.frames[group] if e and group < len(e.frames) else None for e in entries]

    def _frame_bytes(self, names: Sequence[str], groups: Sequence[int]) -> list[list[int]]:
        with self._lock:
            entries = [self._used(name) for name in names]
        return [
            [len(e.frames[group]) if e and group < len(e.frames) else 0 for e in entries]
            for group in groups
        ]

    def _read_page(self, name: str) -> list[bytes] | None:
        with self._lock:
            entry = self._used(name)
        return list(entry.frames) if entry else None

    def _touch(self, names: Sequence[str], ttl_ms: int) -> list[bool]:
        with self._lock:
            expires_s = self._clock() + ttl_ms / 1000
            found = []
            for name in names:
                entry = self._used(name)
                if entry is not None:
                    self._pages[name] = _Entry(entry.frames, expires_s)
                found.append(entry is not None)
            return found

    def _discard(self, names: Sequence[str]) -> None:
        with self._lock:
            self._check_open()
            for name in names:
                self._drop(name)

    def _acquire(self, name: str, token: bytes, ttl_ms: int) -> bool:
        with self._lock:
            self._check_open()
            now = self._clock()
            held = self._leases.get(name)
            if held is not None and held[1] > now and held[0] != token:
                return False
            # Leases that nobody released would pile up: this is the only place that makes new ones.
            for other in [n for n, (_, expires_s) in self._leases.items() if expires_s <= now]:
                del self._leases[other]
            self._leases[name] = (token, now + ttl_ms / 1000)
            return True

    def _release(self, name: str, token: bytes) -> bool:
        with self._lock:
            self._check_open()
            held = self._leases.get(name)
            if held is None or held[0] != token:
                return False
            del self._leases[name]
            return held[1] > self._clock()

    def _put_dictionary(
        self, name: str, listing: str, digest: bytes, chunks: list[memoryview]
    ) -> None:
        data = b"".join(chunks)
        with self._lock:
            self._check_open()
            grown = len(data) - len(self._dictionaries.get(name, b""))
            self._make_room(grown)
            self._dictionaries[name] = data
            self._listings.setdefault(listing, set()).add(digest)
            self._held_bytes += grown

    def _get_dictionary(self, name: str) -> bytes | None:
        with self._lock:
            self._check_open()
            return self._dictionaries.get(name)

    def _list_dictionaries(self, listing: str) -> list[bytes]:
        with self._lock:
            self._check_open()
            return list(self._listings.get(listing, ()))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the page store is closed")

    def _live(self, name: str) -> _Entry | None:
        """The page if it is there and has not expired. Call with the lock held, as all below."""
        self._check_open()
        entry = self._pages.get(name)
        if entry is not None and entry.expires_s <= self._clock():
            self._drop(name)
            return None
        return entry

    def _used(self, name: str) -> _Entry | None:
        entry = self._live(name)
        if entry is not None:
            self._pages.move_to_end(name)
        return entry

    def _drop(self, name: str) -> None:
        entry = self._pages.pop(name, None)
        if entry is not None:
            self._held_bytes -= entry.size

    def _make_room(self, size: int) -> None:
        """Evicts until `size` more bytes fit: expired pages, then whole pages, least recent first.

        Raises:
            Busy: they would not fit even with every page gone. Nothing is evicted then.
        """
        excess = self._held_bytes + size - self._max_bytes
        if excess <= 0:
            return
        if excess > sum(entry.size for entry in self._pages.values()):
            raise Busy(f"{size} bytes do not fit in the memory store: raise maxmemory")
        now = self._clock()
        expired = [name for name, entry in self._pages.items() if entry.expires_s <= now]
        for name in [*expired, *(n for n in list(self._pages) if n not in set(expired))]:
            if self._held_bytes + size <= self._max_bytes:
                return
            self._drop(name)
