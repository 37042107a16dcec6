"""Pages apart, by what they are coded with at the time: lossless until there is a set for them.

A set that is published is taken over. Until pages of before have expired, each page is found and
loaded as what it was stored as: no page depends on the one before it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

from lexico_client._async_client import AsyncClient
from lexico_client._coding import Coding
from lexico_client._results import PageOutcome
from lexico_client.engines._apart import PagesApart
from lexico_client.engines._turns import Left, until
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    Unavailable,
    UnknownDictionary,
)

T = TypeVar("T")

_LOOK_S: Final = 0.001
_SALT_BYTES: Final = 16


class CodedPages:
    """The calls of an adapter, for pages of one model that an engine knows by hashes."""

    def __init__(self, client: AsyncClient, scheme: str, base: CacheSpec, coding: Coding) -> None:
        """
        Args:
            client: of the adapter.
            scheme: of the engine's hashes, see `hashed_pages`.
            base: what pages belong to while they are lossless.
            coding: what they are coded with.
        """
        self._client = client
        self._apart = PagesApart(client, scheme)
        self._base = base
        self._coding = coding

    @property
    def spec(self) -> CacheSpec:
        """What new pages belong to now."""
        return self._coding.spec(self._base)

    def forget(self) -> None:
        """From now on finds nothing that was stored before, by anybody."""
        self._base = replace(self._base, salt=secrets.token_bytes(_SALT_BYTES))

    async def found(self, hashes: Sequence[bytes], seconds: float) -> list[CacheSpec | None]:
        """What each page is stored as; None for those that are not.

        Raises:
            LexicoError: as `PagesApart.stored`.
        """
        now, former = self.spec, self._coding.former(self._base)
        left = until(seconds)
        present = await self._apart.stored(now, hashes, left())
        found = [now if there else None for there in present]
        if former is not None and not all(present):
            before = await self._apart.stored(former, hashes, left())
            both = zip(found, before, strict=True)
            found = [spec or (former if old else None) for spec, old in both]
        return found

    async def sources(self, hashes: Sequence[bytes], seconds: float) -> Sequence[CacheSpec | None]:
        """What pages that were found are loaded as. Asks nobody, but for a page's lifetime after a
        set was taken over.

        Raises:
            LexicoError: as `found`.
        """
        if self._coding.former(self._base) is None:
            return [self.spec] * len(hashes)
        return await self.found(hashes, seconds)

    async def lacking(self, spec: CacheSpec, hashes: Sequence[bytes], seconds: float) -> list[bool]:
        """Which pages are to be sent as `spec`. Those that are there do not expire meanwhile.

        Raises:
            LexicoError: as `PagesApart.stored`.
        """
        present = await self._apart.stored(spec, hashes, seconds, renew=True)
        return [not there for there in present]

    async def load(
        self, spec: CacheSpec | None, page_hash: bytes, memory: CacheMemory, seconds: float
    ) -> None:
        """Brings a page. Ends once nobody writes to the memory any more.

        Args:
            spec: what it is stored as, of `sources`.
            page_hash: names it.
            memory: where it goes: all layers and heads.
            seconds: that it may take.

        Raises:
            Exception: it did not come; the memory may hold anything.
        """
        if spec is None:
            raise Unavailable("a page that was found is no longer in the store")
        loaded = await self._apart.load(spec, page_hash, memory, seconds)
        while loaded.unfinished is not None and not loaded.unfinished.is_set():
            await asyncio.sleep(_LOOK_S)  # a thread may still write
        if not loaded.pages:
            raise loaded.reason or Unavailable("a page that was found did not come")

    async def send(
        self, spec: CacheSpec, page_hash: bytes, memory: CacheMemory, left: Left
    ) -> PageOutcome:
        """Sends a page, if the service lacks it; its set too, if the service lacks that.

        Args:
            spec: what it is to be stored as.
            page_hash, memory: as for `load`; the memory must not change meanwhile.
            left: seconds that it may take, from now on.

        Raises:
            LexicoError: as `AsyncClient.offload`.
        """
        try:
            return await self._apart.offload(spec, page_hash, memory, left())
        except UnknownDictionary:
            dictionary = self._coding.dictionary
            if dictionary is None:
                raise
        await self._client.register_dictionary(dictionary)
        return await self._apart.offload(spec, page_hash, memory, left())
