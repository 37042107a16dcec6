"""What a page store is. The contract suite (tests/contract/store_suite.py) is its definition."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from lexico_proto.errors import InvalidInput, QuotaExceeded
from lexico_proto.limits import MAX_DICTIONARY_BYTES
from lexico_store import checks
from lexico_store import keys as keyspace
from lexico_store.lease import Lease
from lexico_store.lifetimes import (
    ALL_NAMESPACES,
    MAX_FORGOTTEN,
    Found,
    newest,
    now_us,
    page_life_ms,
    prefix_lives_ms,
)
from lexico_store.page_lives import PageLives
from lexico_store.records import Records
from lexico_store.removals import Removals
from lexico_store.room import Frame, Room
from lexico_store.scopes import generation_scope

if TYPE_CHECKING:
    from lexico_store.checks import BytesLike, FrameLike
    from lexico_store.findings import Finding
    from lexico_store.usage import StoreUsage

CHUNK_BYTES: Final = 1 << 20
"""Bytes of one stored piece of a dictionary set: where Redis and the sockets are fastest."""
_TOKEN_BYTES: Final = 16
MAX_OWNER_BYTES: Final = 64
_SEEN: Final = 4096  # generations that a handle remembers


class PageStore(Records, PageLives, Removals):
    """Encoded pages, leases and dictionary sets of many tenants.

    Calls block and may come from many threads at once. `scope` is the digest of the *authenticated*
    tenant (1..64 bytes); tenants never see each other's pages. `key` is a page key of 32 bytes.
    Times are in seconds.

    Every call may raise, and raises nothing else:
        InvalidInput: an argument that can never work (empty frame, wrong key length, ttl_s <= 0).
        StoreUnavailable: the store cannot be reached, died, is loading or read-only, timed out, or
            is closed.
        Busy: the store's memory bound is reached and nothing may be evicted, or all connections are
            in use.
        ConfigurationError: the store refuses our password, or the user's rights do not suffice.
        InternalError: anything else, a defect of ours.

    This class checks arguments and builds names; a backend fills in the underscored methods, which
    may trust both.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, bytes], int] = {}

    def match(
        self,
        scope: bytes,
        namespace: bytes,
        keys: Sequence[bytes],
        *,
        renew_s: float | None = None,
        first: int = 0,
    ) -> Found:
        """Which pages of a sequence are there, in the generation that is in force now. One round
        trip, and a second after something was forgotten.

        Args:
            scope: of the tenant.
            namespace: that the keys are of; empty where the caller does not know it. It finds
                nothing then that is older than the last time that any namespace was forgotten.
            keys: of consecutive pages, or none.
            renew_s: what is there lives so long from now, as after `touch`.
            first: index of the first of them.
        """
        ttl_ms = None if renew_s is None else checks.checked_ttl_ms(renew_s)
        record = keyspace.generations(scope)
        fields = [ALL_NAMESPACES, namespace] if namespace else []
        seen = self._seen.get((scope, namespace), 0)
        while True:
            names = checks.page_names(generation_scope(scope, seen), keys)
            lives = None if ttl_ms is None else prefix_lives_ms(ttl_ms, first, len(names))
            numbers, present = self._match(record, fields, names, lives)
            generation = newest(numbers)
            if generation == seen:
                return Found(generation_scope(scope, seen), seen, present)
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            seen = self._seen[scope, namespace] = generation

    def forget(self, scope: bytes, namespace: bytes | None = None) -> int:
        """Begins a new generation of a tenant's namespace, or of all of them: `match` finds no page
        of an earlier one, whoever still commits it. Their memory is freed when they expire, or by
        `Ledger.forget`.

        Returns:
            The generation: microseconds since 1970.

        Raises:
            QuotaExceeded: `MAX_FORGOTTEN` namespaces were forgotten one by one.
        """
        checks.check_scope(scope)
        field = ALL_NAMESPACES if namespace is None else namespace
        generation = self._forget(keyspace.generations(scope), field, now_us())
        if generation is None:
            raise QuotaExceeded(
                f"{MAX_FORGOTTEN} namespaces of the tenant were forgotten one by one: forget "
                "everything, which begins anew"
            )
        return generation

    def present(self, scope: bytes, keys: Sequence[bytes]) -> list[bool]:
        """For each key, whether its page is there now. One round trip."""
        names = checks.page_names(scope, keys)
        return self._present(names) if names else []

    def remaining(self, digests: Sequence[bytes]) -> list[bool]:
        """Whether the pages with these `keys.page_digest`s are there."""
        return self._present([keyspace.page_of(digest) for digest in digests]) if digests else []

    def commit(
        self,
        scope: bytes,
        key: bytes,
        frames: Sequence[FrameLike],
        ttl_s: float,
        *,
        page: int = 0,
        began_us: int | None = None,
    ) -> bool:
        """Stores a page whole: until this is done readers see the former page, or none.

        Idempotent: the same page may be committed again, also after an error that left its fate
            open.

        Args:
            frames: 1..64 of 1 byte..64 MiB, best about 1 MiB; each one contiguous buffer, or a
                tuple of those that are stored as one run. They are not copied on the way to Redis,
                so they must not change until the call returns.
            ttl_s: the page expires whole after this time; it may be evicted, whole, before.
            page: its index in its sequence: later ones live a little shorter, see `lifetimes`.
            began_us: when the page set out, in microseconds since 1970.

        Returns:
            False where the page was forgotten since it set out: it is not stored then.
        """
        checks.check_scope(scope)
        checks.check_key(key)
        views = checks.checked_frames(frames)
        life_ms = page_life_ms(checks.checked_ttl_ms(ttl_s), page)
        mark = keyspace.mark(scope, key)
        return self._commit(keyspace.page(scope, key), views, life_ms, mark, began_us)

    def read(
        self, scope: bytes, keys: Sequence[bytes], group: int, room: Room | None = None
    ) -> list[Frame | None]:
        """Layer group `group` of many pages, as `read_frames`."""
        return self.read_frames(scope, [(key, group) for key in keys], room)

    def read_frames(
        self, scope: bytes, places: Sequence[tuple[bytes, int]], room: Room | None = None
    ) -> list[Frame | None]:
        """Frames by key and layer group, in order; None for a page or group that is not there. A
        store that would have to copy a frame puts it into `room`, if that is given.

        Two frames may be read on either side of a new commit: `read_page` is for one moment.
        """
        checks.check_groups(groups := [group for _, group in places])
        names = checks.page_names(scope, [key for key, _ in places])
        return self._read(names, groups, room) if names else []

    def frame_bytes(
        self, scope: bytes, keys: Sequence[bytes], groups: Sequence[int]
    ) -> list[list[int]]:
        """Lengths of frames, `[group][page]` in the order asked; 0 for one that is not there, or
        whose page is none (`discard_broken`). It says beforehand what `read` takes, unless a page
        is committed anew in between.
        """
        checks.check_groups(groups)
        names = checks.page_names(scope, keys)
        return self._frame_bytes(names, groups) if names else [[] for _ in groups]

    def read_page(self, scope: bytes, key: bytes) -> list[bytes] | None:
        """Every frame of one page as of one moment, or None."""
        checks.check_scope(scope)
        checks.check_key(key)
        return self._read_page(keyspace.page(scope, key))

    def touch(
        self, scope: bytes, keys: Sequence[bytes], ttl_s: float, first: int = 0
    ) -> list[bool]:
        """Lets consecutive pages expire `ttl_s` from now, the last one first and each a little
        before the one ahead of it; False for those not there (it never revives). Pinned pages stay.
        One round trip.

        Args:
            first: index of the first of them in their sequence.
        """
        ttl_ms = checks.checked_ttl_ms(ttl_s)
        names = checks.page_names(scope, keys)
        return self._touch(names, prefix_lives_ms(ttl_ms, first, len(names))) if names else []

    def persist(self, scope: bytes, keys: Sequence[bytes]) -> list[bool]:
        """Lets pages neither expire nor be evicted; False for those not there."""
        names = checks.page_names(scope, keys)
        return self._persist(names) if names else []

    def expire(
        self, scope: bytes, keys: Sequence[bytes], ttl_s: float, first: int = 0
    ) -> list[bool]:
        """As `touch`, for pinned pages too: they are no longer."""
        ttl_ms = checks.checked_ttl_ms(ttl_s)
        names = checks.page_names(scope, keys)
        return self._expire(names, prefix_lives_ms(ttl_ms, first, len(names))) if names else []

    def lease(
        self, scope: bytes, key: bytes, ttl_s: float, owner: bytes | None = None
    ) -> Lease | None:
        """The page's single-flight lease for `ttl_s`, or None while another holds it.

        `owner` (1..64 bytes) names who asks: the same owner gets a lease again that it holds, as
        one who starts anew after a crash needs. By default every call is an owner of its own.
        """
        checks.check_scope(scope)
        checks.check_key(key)
        name = keyspace.lease(scope, key)
        token = secrets.token_bytes(_TOKEN_BYTES) if owner is None else owner
        if not 1 <= len(token) <= MAX_OWNER_BYTES:
            raise InvalidInput(f"lease: an owner has 1..{MAX_OWNER_BYTES} bytes, not {len(token)}")
        if not self._acquire(name, token, checks.checked_ttl_ms(ttl_s)):
            return None
        return Lease(token, lambda held: self._release(name, held))

    def put_dictionary(self, scope: bytes, digest: bytes, data: BytesLike) -> None:
        """Stores a dictionary set (up to 64 MiB) whole, not to expire or be evicted. Idempotent."""
        checks.check_scope(scope)
        checks.check_digest(digest)
        view = checks.checked_view(data, "dictionary", MAX_DICTIONARY_BYTES)
        chunks = [view[i : i + CHUNK_BYTES] for i in range(0, view.nbytes, CHUNK_BYTES)]
        self._put_dictionary(
            keyspace.dictionary(scope, digest), keyspace.dictionary_listing(scope), digest, chunks
        )

    def get_dictionary(self, scope: bytes, digest: bytes) -> bytes | None:
        """The dictionary set, or None if any part is missing. The caller checks the digest."""
        checks.check_scope(scope)
        checks.check_digest(digest)
        return self._get_dictionary(keyspace.dictionary(scope, digest))

    def list_dictionaries(self, scope: bytes) -> list[bytes]:
        """Digests of the tenant's dictionary sets, sorted."""
        checks.check_scope(scope)
        return sorted(self._list_dictionaries(keyspace.dictionary_listing(scope)))

    @abstractmethod
    def ping(self) -> None:
        """Returns if the store answers, else raises."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections and our server. Idempotent; later calls raise StoreUnavailable."""

    def look(self) -> list[Finding]:
        """One look at what is there: what will not work, what will disappoint, and what to do.

        Changes nothing. A store in this process has nothing to say.
        """
        return []

    def usage(self) -> StoreUsage | None:
        """What its servers say of themselves; None where there are none that may be asked."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _present(self, names: Sequence[str]) -> list[bool]: ...

    @abstractmethod
    def _match(
        self, record: str, fields: Sequence[bytes], names: Sequence[str], lives: list[int] | None
    ) -> tuple[Sequence[bytes | None], list[bool]]:
        """These fields of a record, all of them for none, and which pages are there. `lives`: what
        is there lives so many milliseconds, the last set first."""

    @abstractmethod
    def _forget(self, record: str, field: bytes, when_us: int) -> int | None:
        """Sets a field to this time, or to one after all of the record's, in one atomic step; that
        of all namespaces replaces the others. None where it would be one more than
        `MAX_FORGOTTEN`."""

    @abstractmethod
    def _commit(
        self,
        name: str,
        frames: list[checks.Parts],
        life_ms: int,
        mark: str,
        began_us: int | None,
    ) -> bool: ...

    @abstractmethod
    def _read(
        self, names: Sequence[str], groups: Sequence[int], room: Room | None
    ) -> list[Frame | None]: ...

    @abstractmethod
    def _frame_bytes(self, names: Sequence[str], groups: Sequence[int]) -> list[list[int]]: ...

    @abstractmethod
    def _read_page(self, name: str) -> list[bytes] | None: ...

    @abstractmethod
    def _touch(self, names: Sequence[str], lives: list[int]) -> list[bool]: ...

    @abstractmethod
    def _persist(self, names: Sequence[str]) -> list[bool]: ...

    @abstractmethod
    def _expire(self, names: Sequence[str], lives: list[int]) -> list[bool]: ...

    @abstractmethod
    def _acquire(self, name: str, token: bytes, ttl_ms: int) -> bool: ...

    @abstractmethod
    def _release(self, name: str, token: bytes) -> bool: ...

    @abstractmethod
    def _put_dictionary(
        self, name: str, listing: str, digest: bytes, chunks: list[memoryview]
    ) -> None: ...

    @abstractmethod
    def _get_dictionary(self, name: str) -> bytes | None: ...

    @abstractmethod
    def _list_dictionaries(self, listing: str) -> list[bytes]: ...
