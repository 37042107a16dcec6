"""The store in a Redis or Valkey server (Redis 7 and later).

The server should have `maxmemory` set, and the policy volatile-ttl with 64 samples: pages expire,
and may be evicted in that order; dictionary sets, records and pinned pages do not and may not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from typing import Any, Final

import redis
from redis.exceptions import TryAgainError

from lexico_proto.errors import Busy, StoreUnavailable
from lexico_proto.limits import MAX_FRAME_BYTES, MAX_GROUPS
from lexico_store import keys
from lexico_store.checks import Parts
from lexico_store.findings import Finding
from lexico_store.lifetimes import LINGER_MS, MAX_FORGOTTEN
from lexico_store.records import PinNote
from lexico_store.redis_errors import as_lexico
from lexico_store.redis_exchange import Argument, Command, Unit
from lexico_store.redis_pool import PACK_CUTOFF_BYTES, LongValue
from lexico_store.redis_script import Script
from lexico_store.redis_servers import Servers
from lexico_store.room import Frame, Room
from lexico_store.settings import StoreSettings
from lexico_store.store import PageStore
from lexico_store.usage import StoreUsage

READ_WINDOW: Final = 64
"""Most frames asked for in one go. Replies that wait for us count against the server's maxmemory,
and would evict the very pages that we reload."""
LENGTHS_WINDOW: Final = 4096
"""Most lengths asked for in one go: their replies are short, but the server serves nobody else
meanwhile."""


class RedisStore(PageStore):
    """Pages as Redis hashes. Opened by `open_store`.

    Args:
        servers: how commands reach Redis; this store closes it.
        on_close: called once, after the connections are closed: ends a server that is ours.
    """

    def __init__(
        self,
        servers: Servers,
        settings: StoreSettings,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._servers = servers
        self._max_calls = settings.max_connections
        self._slots = threading.BoundedSemaphore(self._max_calls)
        self._slot_wait_s = settings.timeout_s
        self._unsure_ms = 1000 + round(2000 * settings.timeout_s)  # two calls, and some more
        self._on_close = on_close
        self._close_lock = threading.Lock()
        self._closed = False
        self._acquire_script = self._script("acquire.lua")
        self._release_script = self._script("release.lua")
        self._forget_script = self._script("forget.lua")
        self._pin_script = self._script("pin.lua")
        self._broken_script = self._script("discard_broken.lua")
        self._fence = _lua("fence.lua")

    def _script(self, name: str) -> Script:
        return Script(self._servers, _lua(name))

    def ping(self) -> None:
        self._run("ping", [("PING",)])

    def look(self) -> list[Finding]:
        with self._guard("look"):
            return self._servers.look()

    def usage(self) -> StoreUsage | None:
        with self._guard("usage"):
            return self._servers.usage()

    def close(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._wait_for_calls()
        self._servers.close()
        if self._on_close is not None:
            self._on_close()

    def _wait_for_calls(self) -> None:
        """Lets other threads' calls end, for one timeout at most; then cuts them off."""
        deadline = time.monotonic() + self._slot_wait_s
        taken = 0
        while taken < self._max_calls and self._slots.acquire(
            timeout=max(0.0, deadline - time.monotonic())
        ):
            taken += 1
        for _ in range(taken):
            self._slots.release()

    def _present(self, names: Sequence[str]) -> list[bool]:
        return [bool(n) for n in self._run("present", [("EXISTS", name) for name in names])]

    def _match(
        self, record: str, fields: Sequence[bytes], names: Sequence[str], lives: list[int] | None
    ) -> tuple[Sequence[bytes | None], list[bool]]:
        generations: Command = ("HMGET", record, *fields) if fields else ("HVALS", record)
        renewals = _renewals(names, lives) if lives is not None else []
        asked: list[Command] = [("EXISTS", name) for name in names]
        numbers, *replies = self._run(
            "match", [generations, *renewals, *asked], ordered=bool(renewals)
        )
        return numbers, [bool(n) for n in replies[len(renewals) :]]

    def _commit(
        self,
        name: str,
        frames: list[Parts],
        life_ms: int,
        mark: str,
        began_us: int | None,
    ) -> bool:
        fields: list[Argument] = []
        for group, frame in enumerate(frames):
            fields += [keys.group_field(group), _value(frame)]
        fields += [keys.FRAME_COUNT_FIELD, len(frames)]
        commands: list[Command] = [
            ("DEL", name),
            ("HSET", name, *fields),
            ("PEXPIRE", name, life_ms),
        ]
        with self._guard("commit"):
            if began_us is None:
                self._servers.run(commands, atomic=True)
                return True
            # By its text: a script that the server has lost would fail within the MULTI.
            fence: Command = ("EVAL", self._fence, 2, name, mark, began_us)
            try:
                return bool(self._servers.run([*commands, fence], atomic=True, waits=False)[-1])
            except TryAgainError:
                return self._commit_on_the_move(commands[:2], name, life_ms, mark, began_us)

    def _commit_on_the_move(
        self, storing: Sequence[Command], name: str, life_ms: int, mark: str, began_us: int
    ) -> bool:
        """A commit while the page's slot goes to another server, which takes no two names at once
        then. Whoever forgets the page sets the mark before it removes the page: so either they
        remove this one, or the mark is seen here. Until it was looked for, the page lives short.
        """

        def forgotten() -> bool:
            return _time_us(self._servers.run([("GET", mark)])[0]) >= began_us

        if forgotten():
            return False
        short: Command = ("PEXPIRE", name, min(life_ms, self._unsure_ms))
        self._servers.run([*storing, short], atomic=True)
        if forgotten():
            self._servers.run([("UNLINK", name)])
            return False
        return bool(self._servers.run([("PEXPIRE", name, life_ms, "XX")])[0])

    def _read(
        self, names: Sequence[str], groups: Sequence[int], room: Room | None
    ) -> list[Frame | None]:
        commands = [
            ("HGET", name, keys.group_field(group))
            for name, group in zip(names, groups, strict=True)
        ]
        units = [
            Unit((command,), room=None if room is None else partial(room, place))
            for place, command in enumerate(commands)
        ]
        frames: list[Frame | None] = []
        for start in range(0, len(units), READ_WINDOW):
            with self._guard("read"):
                frames += self._servers.run_units(units[start : start + READ_WINDOW])
        return frames

    def _frame_bytes(self, names: Sequence[str], groups: Sequence[int]) -> list[list[int]]:
        fields = [keys.group_field(group) for group in groups]
        units = [
            Unit((("HSTRLEN", name, field),), of_others=0) for field in fields for name in names
        ]
        lengths: list[int] = []
        for start in range(0, len(units), LENGTHS_WINDOW):
            with self._guard("frame_bytes"):
                found = self._servers.run_units(units[start : start + LENGTHS_WINDOW])
            lengths += map(int, found)
        pages = len(names)
        return [lengths[at : at + pages] for at in range(0, len(lengths), pages)]

    def _read_page(self, name: str) -> list[bytes] | None:
        found: dict[bytes, bytes] = self._run("read_page", [("HGETALL", name)])[0]
        noted = found.pop(keys.FRAME_COUNT_FIELD.encode(), b"")
        if noted not in (b"", str(len(found)).encode()):
            return None
        frames = [found.get(keys.group_field(i).encode()) for i in range(len(found))]
        whole = [frame for frame in frames if frame]
        return whole if whole and len(whole) == len(frames) else None

    def _touch(self, names: Sequence[str], lives: list[int]) -> list[bool]:
        # A pinned page and one that is not there answer XX alike.
        asked: list[Command] = [("EXISTS", name) for name in names]
        replies = self._run("touch", [*_renewals(names, lives), *asked], ordered=True)
        return [bool(n) for n in replies[len(names) :]]

    def _persist(self, names: Sequence[str]) -> list[bool]:
        commands: list[Command] = [("PERSIST", name) for name in names]
        asked: list[Command] = [("EXISTS", name) for name in names]
        return [bool(n) for n in self._run("persist", [*commands, *asked])[len(names) :]]

    def _expire(self, names: Sequence[str], lives: list[int]) -> list[bool]:
        pairs = list(zip(names, lives, strict=True))
        commands: list[Command] = [("PEXPIRE", name, life) for name, life in reversed(pairs)]
        return [bool(n) for n in reversed(self._run("expire", commands, ordered=True))]

    def _lives(self, names: Sequence[str]) -> list[int]:
        return [int(left) for left in self._run("lives", [("PTTL", name) for name in names])]

    def _forget(self, record: str, field: bytes, when_us: int) -> int | None:
        with self._guard("forget"):
            found = self._forget_script(keys=[record], args=[field, when_us, MAX_FORGOTTEN])
        return None if found is None else int(found)

    def _forget_pages(self, names: Sequence[str], marks: Sequence[str], when_us: int) -> list[bool]:
        # Marks first: a page that is committed in between is refused, or removed after it. Not in
        # one exchange: a slot on the move would send the marks on alone, behind the removals.
        self._run("forget", [("SET", mark, when_us, "PX", LINGER_MS) for mark in marks])
        return [bool(n) for n in self._run("forget", [("UNLINK", name) for name in names])]

    def _marked_us(self, mark: str) -> int:
        return _time_us(self._run("forgotten", [("GET", mark)])[0])

    def read_record(self, name: str, fields: Sequence[bytes] | None = None) -> dict[bytes, bytes]:
        if fields is None:
            found: dict[bytes, bytes] = self._run("record", [("HGETALL", name)])[0]
            return found
        values = self._run("record", [("HMGET", name, *fields)])[0]
        return {f: value for f, value in zip(fields, values, strict=True) if value is not None}

    def write_record(self, name: str, values: Mapping[bytes, bytes]) -> None:
        pairs = [part for pair in values.items() for part in pair]
        self._run("record", [("HSET", name, *pairs)])

    def remove_fields(self, name: str, fields: Sequence[bytes]) -> None:
        self._run("record", [("HDEL", name, *fields)])

    def sample_record(self, name: str, count: int) -> tuple[int, dict[bytes, bytes]]:
        commands = [("HLEN", name), ("HRANDFIELD", name, count, "WITHVALUES")]
        fields, drawn = self._run("record", commands)
        return int(fields), dict(zip(drawn[::2], drawn[1::2], strict=True))

    def note_pin(
        self, name: str, pin: bytes, value: bytes, former: bytes, most_bytes: int, most_pins: int
    ) -> PinNote:
        with self._guard("pin"):
            args: list[Argument] = [pin, value, former, most_bytes, most_pins]
            return PinNote(int(self._pin_script(keys=[name], args=args)))

    def _discard(self, names: Sequence[str]) -> None:
        self._run("discard", [("UNLINK", name) for name in names])

    def _discard_broken(self, names: Sequence[str]) -> list[bool]:
        bounds: list[Argument] = [MAX_GROUPS, MAX_FRAME_BYTES]
        with self._guard("discard_broken"):
            return [bool(self._broken_script(keys=[name], args=bounds)) for name in names]

    def _acquire(self, name: str, token: bytes, ttl_ms: int) -> bool:
        with self._guard("lease"):
            return bool(self._acquire_script(keys=[name], args=[token, ttl_ms, LINGER_MS]))

    def _release(self, name: str, token: bytes) -> bool:
        with self._guard("release"):
            return bool(self._release_script(keys=[name], args=[token]))

    def _put_dictionary(
        self, name: str, listing: str, digest: bytes, chunks: list[memoryview]
    ) -> None:
        fields: list[Argument] = []
        for i, chunk in enumerate(chunks):
            fields += [keys.chunk_field(i), _value((chunk,))]
        size = sum(chunk.nbytes for chunk in chunks)
        fields += [keys.CHUNK_COUNT_FIELD, len(chunks), keys.SIZE_FIELD, size]
        self._run(
            "put_dictionary",
            [("DEL", name), ("HSET", name, *fields), ("SADD", listing, digest)],
            atomic=True,
        )

    def _get_dictionary(self, name: str) -> bytes | None:
        # One HGETALL, not one HGET a chunk: a put in between would give pieces of two versions.
        found: dict[bytes, bytes] = self._run("get_dictionary", [("HGETALL", name)])[0]
        try:
            count = int(found[keys.CHUNK_COUNT_FIELD.encode()])
            size = int(found[keys.SIZE_FIELD.encode()])
            data = b"".join([found[keys.chunk_field(i).encode()] for i in range(count)])
        except (KeyError, ValueError):
            return None
        return data if len(data) == size else None

    def _list_dictionaries(self, listing: str) -> list[bytes]:
        return list(self._run("list_dictionaries", [("SMEMBERS", listing)])[0])

    def _run(
        self,
        doing: str,
        commands: Sequence[Command],
        *,
        atomic: bool = False,
        ordered: bool = False,
    ) -> list[Any]:
        """The replies to `commands`, in one round trip; see `Servers.run`."""
        with self._guard(doing):
            return self._servers.run(commands, atomic=atomic, ordered=ordered)

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Waits for a free connection, and lets out none of redis-py's exceptions."""
        if not self._slots.acquire(timeout=self._slot_wait_s):
            raise Busy(f"all connections to the page store are in use ({doing}): retry later")
        try:
            if self._closed:
                raise StoreUnavailable(f"the page store is closed ({doing})")
            yield
        except (redis.RedisError, OSError) as error:
            raise as_lexico(error, doing) from error
        finally:
            self._slots.release()


def _time_us(mark: bytes | None) -> int:
    """Of a mark; 0 where there is none, or something else in its place."""
    return int(mark) if mark is not None and mark.isdigit() and len(mark) < 20 else 0


def _renewals(names: Sequence[str], lives: list[int]) -> list[Command]:
    """The last page first: one that is renewed late, or once more, has those ahead of it renewed
    afterwards, so that none outlives one ahead."""
    pairs = list(zip(names, lives, strict=True))
    return [("PEXPIRE", name, life, "XX") for name, life in reversed(pairs)]


def _lua(name: str) -> str:
    return resources.files("lexico_store").joinpath("lua", name).read_text()


def _value(parts: Parts) -> bytes | LongValue:
    """Small values by copy, to share a send with others; long ones from where they are."""
    long = LongValue(parts)
    return long if len(long) > PACK_CUTOFF_BYTES else b"".join(parts)
