"""How pages end before their time: forgotten by people, or removed because they are of no use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lexico_store import checks
from lexico_store import keys as keyspace
from lexico_store.lifetimes import now_us


class Removals(ABC):
    """A part of `PageStore`, and raises what that raises."""

    def forget_pages(self, scope: bytes, keys: Sequence[bytes]) -> list[bool]:
        """Removes pages, and refuses those that set out before now: `commit` with `began_us`.

        Returns:
            Which of them were there.
        """
        names = checks.page_names(scope, keys)
        marks = [keyspace.mark(scope, key) for key in keys]
        return self._forget_pages(names, marks, now_us()) if names else []

    def forgotten_us(self, scope: bytes, key: bytes) -> int:
        """When `forget_pages` removed this page last, in microseconds since 1970; 0 if nothing says
        that it did."""
        checks.check_scope(scope)
        checks.check_key(key)
        return self._marked_us(keyspace.mark(scope, key))

    def discard(self, scope: bytes, keys: Sequence[bytes]) -> None:
        """Removes pages; those not there are passed over."""
        names = checks.page_names(scope, keys)
        if names:
            self._discard(names)

    def discard_broken(self, scope: bytes, keys: Sequence[bytes]) -> list[bool]:
        """Removes those pages that no `commit` leaves so, whoever did it: a frame is missing, empty
        or too long, or there is something else under the page's name. One atomic look each: a page
        that is committed anew meanwhile stays.

        Returns:
            Which of them were removed. What is whole, and what is not there, is none.
        """
        names = checks.page_names(scope, keys)
        return self._discard_broken(names) if names else []

    def drop(self, digests: Sequence[bytes]) -> None:
        """Removes pages by their `keys.page_digest`s."""
        if digests:
            self._discard([keyspace.page_of(digest) for digest in digests])

    @abstractmethod
    def _forget_pages(
        self, names: Sequence[str], marks: Sequence[str], when_us: int
    ) -> list[bool]: ...

    @abstractmethod
    def _marked_us(self, mark: str) -> int: ...

    @abstractmethod
    def _discard(self, names: Sequence[str]) -> None: ...

    @abstractmethod
    def _discard_broken(self, names: Sequence[str]) -> list[bool]: ...
