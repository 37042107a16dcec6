"""A store in this process's memory: for tests, for one node alone, an oracle for the others."""

from __future__ import annotations

import heapq
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import Busy, StoreUnavailable
from lexico_store.checks import Parts
from lexico_store.lifetimes import ALL_NAMESPACES, MAX_FORGOTTEN, newest
from lexico_store.records import PinNote, judge_pin
from lexico_store.room import Frame, Room
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
    """Pages and dictionary sets in at most `max_bytes`; the page that expires first goes first.

    Like Redis under volatile-ttl: dictionary sets and pinned pages count but stay, and a page is
    used when it is renewed.

    Args:
        max_bytes: bound on payload bytes, Python's own overhead not counted.
        clock: seconds, never going back; tests inject theirs.
    """

    def __init__(
        self, max_bytes: int = DEFAULT_MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._pages: dict[str, _Entry] = {}
        self._queue: list[tuple[float, int, str]] = []
        """Heap of pages by expiry, then by when it was set; one whose expiry is another's by now is
        passed over."""
        self._turn = 0
        self._marks: dict[str, int] = {}
        self._records: dict[str, dict[bytes, bytes]] = {}
        self._leases: dict[str, tuple[bytes, float]] = {}
        self._dictionaries: dict[str, bytes] = {}
        self._listings: dict[str, set[bytes]] = {}
        self._held_bytes = 0
        self._fixed_bytes = 0  # of dictionary sets and pinned pages, among those held
        self._closed = False

    def ping(self) -> None:
        with self._lock:
            self._check_open()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._pages.clear()
            self._queue.clear()
            self._marks.clear()
            self._records.clear()
            self._leases.clear()
            self._dictionaries.clear()
            self._listings.clear()
            self._held_bytes = self._fixed_bytes = 0

    def _match(
        self, record: str, fields: Sequence[bytes], names: Sequence[str], lives: list[int] | None
    ) -> tuple[Sequence[bytes | None], list[bool]]:
        with self._lock:
            self._check_open()
            kept = self._records.get(record, {})
            numbers = [kept.get(field) for field in fields] if fields else list(kept.values())
            if lives is not None:
                return numbers, self._renewed(names, lives)
            return numbers, [self._live(name) is not None for name in names]

    def _present(self, names: Sequence[str]) -> list[bool]:
        with self._lock:
            return [self._live(name) is not None for name in names]

    def _commit(
        self,
        name: str,
        frames: list[Parts],
        life_ms: int,
        mark: str,
        began_us: int | None,
    ) -> bool:
        # The copy is made before the lock is taken: it is the long part.
        copies = tuple(b"".join(frame) for frame in frames)
        with self._lock:
            self._check_open()
            self._drop(name)
            if began_us is not None and self._marks.get(mark, 0) >= began_us:
                return False
            entry = _Entry(copies, self._clock() + life_ms / 1000)
            self._make_room(entry.size)
            self._keep(name, entry)
            return True

    def _read(
        self, names: Sequence[str], groups: Sequence[int], room: Room | None
    ) -> list[Frame | None]:
        with self._lock:
            entries = [self._live(name) for name in names]
        return [
            entry.frames[group] if entry and group < len(entry.frames) else None
            for entry, group in zip(entries, groups, strict=True)
        ]

    def _frame_bytes(self, names: Sequence[str], groups: Sequence[int]) -> list[list[int]]:
        with self._lock:
            entries = [self._live(name) for name in names]
        return [
            [len(e.frames[group]) if e and group < len(e.frames) else 0 for e in entries]
            for group in groups
        ]

    def _read_page(self, name: str) -> list[bytes] | None:
        with self._lock:
            entry = self._live(name)
        return list(entry.frames) if entry else None

    def _touch(self, names: Sequence[str], lives: list[int]) -> list[bool]:
        with self._lock:
            return self._renewed(names, lives)

    def _persist(self, names: Sequence[str]) -> list[bool]:
        with self._lock:
            return [self._reset(name, math.inf) for name in names]

    def _expire(self, names: Sequence[str], lives: list[int]) -> list[bool]:
        with self._lock:
            now = self._clock()
            pairs = list(zip(names, lives, strict=True))
            return [self._reset(name, now + life / 1000) for name, life in pairs]

    def _lives(self, names: Sequence[str]) -> list[int]:
        with self._lock:
            now, entries = self._clock(), [self._live(name) for name in names]
        return [_left_ms(entry, now) for entry in entries]

    def _forget(self, record: str, field: bytes, when_us: int) -> int | None:
        with self._lock:
            self._check_open()
            kept = self._records.setdefault(record, {})
            generation = max(when_us, newest(list(kept.values())) + 1)
            if field == ALL_NAMESPACES:
                kept.clear()
            elif len(kept) >= MAX_FORGOTTEN and field not in kept:
                return None
            kept[field] = str(generation).encode()
            return generation

    def _forget_pages(self, names: Sequence[str], marks: Sequence[str], when_us: int) -> list[bool]:
        with self._lock:
            found = [self._live(name) is not None for name in names]
            self._marks.update(dict.fromkeys(marks, when_us))
            for name in names:
                self._drop(name)
            return found

    def _marked_us(self, mark: str) -> int:
        with self._lock:
            self._check_open()
            return self._marks.get(mark, 0)

    def read_record(self, name: str, fields: Sequence[bytes] | None = None) -> dict[bytes, bytes]:
        with self._lock:
            self._check_open()
            kept = self._records.get(name, {})
            return {f: kept[f] for f in (kept if fields is None else fields) if f in kept}

    def write_record(self, name: str, values: Mapping[bytes, bytes]) -> None:
        with self._lock:
            self._check_open()
            self._records.setdefault(name, {}).update(values)

    def remove_fields(self, name: str, fields: Sequence[bytes]) -> None:
        with self._lock:
            self._check_open()
            kept = self._records.get(name, {})
            for field in fields:
                kept.pop(field, None)

    def sample_record(self, name: str, count: int) -> tuple[int, dict[bytes, bytes]]:
        with self._lock:
            self._check_open()
            kept = self._records.get(name, {})
            drawn = random.sample(sorted(kept), min(count, len(kept)))
            return len(kept), {field: kept[field] for field in drawn}

    def note_pin(
        self, name: str, pin: bytes, value: bytes, former: bytes, most_bytes: int, most_pins: int
    ) -> PinNote:
        with self._lock:
            self._check_open()
            record = self._records.get(name, {})
            note = judge_pin(record, pin, value, former, most_bytes, most_pins)
            if note is PinNote.NOTED:
                self._records.setdefault(name, {})[pin] = value
            return note

    def _discard(self, names: Sequence[str]) -> None:
        with self._lock:
            self._check_open()
            for name in names:
                self._drop(name)

    def _discard_broken(self, names: Sequence[str]) -> list[bool]:
        with self._lock:
            self._check_open()
        return [False] * len(names)  # nobody else can reach them

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
            self._fixed_bytes += grown
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

    def _renewed(self, names: Sequence[str], lives: Sequence[int]) -> list[bool]:
        now, found = self._clock(), []
        for name, life in zip(names, lives, strict=True):
            entry = self._live(name)
            if entry is not None and entry.expires_s < math.inf:
                self._reset(name, now + life / 1000)
            found.append(entry is not None)
        return found

    def _reset(self, name: str, expires_s: float) -> bool:
        """Gives a page that is there another expiry."""
        entry = self._live(name)
        if entry is None:
            return False
        self._drop(name)
        self._keep(name, _Entry(entry.frames, expires_s))
        return True

    def _keep(self, name: str, entry: _Entry) -> None:
        self._pages[name] = entry
        self._held_bytes += entry.size
        if entry.expires_s == math.inf:
            self._fixed_bytes += entry.size
            return
        self._turn += 1
        heapq.heappush(self._queue, (entry.expires_s, self._turn, name))
        if len(self._queue) > 2 * len(self._pages) + 64:  # most are of expiries that are over
            self._queue = [each for each in self._queue if self._stands(each)]
            heapq.heapify(self._queue)

    def _stands(self, queued: tuple[float, int, str]) -> bool:
        entry = self._pages.get(queued[2])
        return entry is not None and entry.expires_s == queued[0]

    def _drop(self, name: str) -> None:
        entry = self._pages.pop(name, None)
        if entry is not None:
            self._held_bytes -= entry.size
            self._fixed_bytes -= entry.size if entry.expires_s == math.inf else 0

    def _make_room(self, size: int) -> None:
        """Evicts until `size` more bytes fit: whole pages, those that expire first.

        Raises:
            Busy: they would not fit even with every page gone. Nothing is evicted then.
        """
        if self._fixed_bytes + size > self._max_bytes:
            raise Busy(f"{size} bytes do not fit in the memory store: raise maxmemory")
        while self._held_bytes + size > self._max_bytes:
            queued = heapq.heappop(self._queue)
            if self._stands(queued):
                self._drop(queued[2])


def _left_ms(entry: _Entry | None, now: float) -> int:
    if entry is None:
        return -2
    return -1 if entry.expires_s == math.inf else round(1000 * (entry.expires_s - now))
