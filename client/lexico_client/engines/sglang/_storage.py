"""The backend without the engine: which pages are stored, loads into its pool, stores from it.

SGLang calls from threads of its own that wait for the answer: one prefetches, one backs up. The
calls of the service run on a loop of ours, and each ends within its deadline.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from lexico_client._coding import Coding, checked_without_set
from lexico_client._results import PageOutcome
from lexico_client._settings import Timeouts
from lexico_client.engines._apart import PagesApart
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.sglang._config import StorageConfig
from lexico_client.engines.sglang._log import LOG
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    ConfigurationError,
    DeadlineExpired,
    InternalError,
    InvalidInput,
    LexicoError,
    Unavailable,
    UnknownDictionary,
)

T = TypeVar("T")

SCHEME: Final = "sglang-sha256"
"""SGLang's hash of a page: SHA-256 over that of the page before and the page's token ids, the first
one over what keeps requests apart (LoRA adapter, cache salt, namespace)."""
GRACE_S: Final = 5.0
"""What a call may take beyond its deadline, which it ends itself, before that is spoken of."""
_LOOK_S: Final = 0.001
_SALT_BYTES: Final = 16


@dataclass(frozen=True)
class Page:
    """A page of the engine's."""

    hash: bytes
    memory: CacheMemory
    """Of all layers and heads; nobody else uses it during a call."""


class StorageSide:
    """What a backend does. Every call is answered, whatever becomes of the service."""

    def __init__(
        self,
        base: CacheSpec,
        coding: Coding,
        service: Service,
        counts: Counts,
        *,
        match_seconds: float,
        load_seconds: float,
        offload_seconds: float,
        concurrent_pages: int,
        stores: bool,
    ) -> None:
        """
        Args:
            base: what pages belong to while they are lossless.
            coding: what they are coded with.
            service: for this alone.
            counts: of the engine.
            match_seconds, load_seconds, offload_seconds: of a call for all of its pages.
            concurrent_pages: as `StorageConfig` has it.
            stores: whether there is an ingress.
        """
        self._base = base
        self._coding = coding
        self._service = service
        self._counts = counts
        self._match_s = match_seconds
        self._load_s = load_seconds
        self._offload_s = offload_seconds
        self._at_a_time = concurrent_pages
        self._stores = stores
        self._apart = PagesApart(service.client, SCHEME)

    @classmethod
    def of(
        cls,
        base: CacheSpec,
        settings: StorageConfig,
        service: Service,
        counts: Counts,
        model: str = "",
    ) -> StorageSide:
        """As the settings have it. Asks the service for a set, where the codec needs one.

        Args:
            base, service, counts: as above.
            settings: of the backend.
            model: folder of the model, for messages.

        Raises:
            ConfigurationError: a codec or set that cannot code the model's pages.
        """
        try:
            coding = service.wait(
                service.client.coding(
                    base,
                    settings.codec,
                    codec_config=settings.codec_config,
                    dictionary=settings.dictionary_given(),
                    without_set=checked_without_set(settings.without_set),
                    model=model,
                ),
                settings.match_seconds + Timeouts.dictionaries,
            )
        except LexicoError as error:
            raise ConfigurationError(f"{settings.where}: codec: {error.message}") from error
        return cls(
            base,
            coding,
            service,
            counts,
            match_seconds=settings.match_seconds,
            load_seconds=settings.load_seconds,
            offload_seconds=settings.offload_seconds,
            concurrent_pages=settings.concurrent_pages,
            stores=settings.offload is not None,
        )

    @property
    def spec(self) -> CacheSpec:
        """What new pages belong to now."""
        return self._coding.spec(self._base)

    def forget(self) -> None:
        """From now on finds nothing that was stored before."""
        self._base = replace(self._base, salt=secrets.token_bytes(_SALT_BYTES))
        LOG.warning("nothing is found any more that was stored before, as was asked for")

    def exists(self, hashes: Sequence[bytes]) -> int:
        """Leading pages that are stored; 0 where the service does not say."""
        if not hashes:
            return 0
        size = self._base.page_tokens
        self._counts.tokens("asked", len(hashes) * size)
        try:
            found = self._result(self._found(hashes), self._match_s)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end SGLang's thread
            self._counts.warn("match", error)
            self._counts.request("failed")
            return 0
        leading = [*(spec is not None for spec in found), False].index(False)
        self._counts.tokens("promised", leading * size)
        self._counts.request("hit" if leading else "miss")
        return leading

    def load(self, pages: Sequence[Page]) -> list[bool]:
        """Brings pages. Those that came are a run from the first on; the memory of others may hold
        anything."""
        size, came = self._base.page_tokens, 0
        try:
            came = self._result(self._loaded(pages), self._load_s, writes=True)
        except Exception as error:  # noqa: BLE001 - as above: they are computed
            self._counts.warn("load", error)
        self._counts.tokens("loaded", came * size)
        self._counts.tokens("lost", (len(pages) - came) * size)
        return [page < came for page in range(len(pages))]

    def store(self, pages: Sequence[Page]) -> list[bool]:
        """Sends the pages that the service lacks. What is there is neither read nor sent."""
        if not self._stores:
            return [True] * len(pages)
        once = {page.hash: page for page in pages}
        ended: dict[bytes, PageOutcome] = {}
        try:
            self._result(self._stored(list(once.values()), ended), self._offload_s)
        except Exception as error:  # noqa: BLE001 - of the engine's requests none depends on it
            self._counts.warn("store", error)
        present = sum(outcome is PageOutcome.PRESENT for outcome in ended.values())
        self._counts.pages("present", present)
        self._counts.pages("sent", len(ended) - present)
        self._counts.pages("failed", len(once) - len(ended))
        return [page.hash in ended for page in pages]

    async def _found(self, hashes: Sequence[bytes]) -> list[CacheSpec | None]:
        """What each page is stored as: as pages are coded now, or were before a set came."""
        now, former = self._coding.spec(self._base), self._coding.former(self._base)
        end = asyncio.get_running_loop().time() + self._match_s
        present = await self._apart.stored(now, hashes, self._match_s)
        found = [now if there else None for there in present]
        if former is not None and not all(present):
            left = max(0.001, end - asyncio.get_running_loop().time())
            before = await self._apart.stored(former, hashes, left)
            both = zip(found, before, strict=True)
            found = [spec or (former if old else None) for spec, old in both]
        return found

    async def _loaded(self, pages: Sequence[Page]) -> int:
        """Leading pages that came."""
        end = asyncio.get_running_loop().time() + self._load_s
        specs: Sequence[CacheSpec | None] = [self._coding.spec(self._base)] * len(pages)
        if self._coding.former(self._base) is not None:
            specs = await self._found([page.hash for page in pages])
        wanted = len(pages)

        async def bring(number: int) -> None:
            nonlocal wanted
            page, spec = pages[number], specs[number]
            if number >= wanted:
                return
            try:
                if spec is None:
                    raise Unavailable(f"page {number} is no longer in the store")
                left = max(0.001, end - asyncio.get_running_loop().time())
                loaded = await self._apart.load(spec, page.hash, page.memory, left)
                while loaded.unfinished is not None and not loaded.unfinished.is_set():
                    await asyncio.sleep(_LOOK_S)  # a thread may still write into the pool
                if not loaded.pages:
                    raise loaded.reason or Unavailable(f"page {number} did not come")
            except Exception as error:  # noqa: BLE001 - whatever it is, the page is computed
                if number < wanted:
                    wanted = number
                    self._counts.warn("load", error)

        await self._each(range(len(pages)), bring)
        return wanted

    async def _stored(self, pages: Sequence[Page], ended: dict[bytes, PageOutcome]) -> None:
        """
        Args:
            pages: of different hashes.
            ended: gets what became of each that is in the store now.

        Raises:
            Exception: what the first of those that are not was refused for.
        """
        end = asyncio.get_running_loop().time() + self._offload_s
        spec = self._coding.spec(self._base)
        hashes = [page.hash for page in pages]
        present = await self._apart.stored(spec, hashes, self._match_s, renew=True)
        there = [each for each, stored in zip(hashes, present, strict=True) if stored]
        ended.update(dict.fromkeys(there, PageOutcome.PRESENT))
        refused: list[Exception] = []

        async def send(page: Page) -> None:
            if refused:
                return
            left = max(0.001, end - asyncio.get_running_loop().time())
            try:
                ended[page.hash] = await self._sent(spec, page, left)
            except Exception as error:  # noqa: BLE001 - told of once the others have ended
                refused.append(error)

        await self._each([page for page in pages if page.hash not in ended], send)
        if refused:
            raise refused[0]

    async def _sent(self, spec: CacheSpec, page: Page, left: float) -> PageOutcome:
        try:
            return await self._apart.offload(spec, page.hash, page.memory, left)
        except UnknownDictionary:
            dictionary = self._coding.dictionary
            if dictionary is None:
                raise
        await self._service.client.register_dictionary(dictionary)
        return await self._apart.offload(spec, page.hash, page.memory, left)

    async def _each(
        self, things: Sequence[T], work: Callable[[T], Coroutine[Any, Any, None]]
    ) -> None:
        """Does the work for each, in order, several at a time."""
        left = iter(things)

        async def take() -> None:
            for each in left:
                await work(each)

        await asyncio.gather(*(take() for _ in range(min(self._at_a_time, len(things)))))

    def _result(self, work: Coroutine[Any, Any, T], seconds: float, *, writes: bool = False) -> T:
        """Of work on the loop, which ends within so many seconds, or soon after.

        Args:
            writes: into memory that is the engine's again after the call: it is not left behind.

        Raises:
            LexicoError: what the work raised; it did not end; or there is no loop any more.
        """
        try:
            call = self._service.begin(work)
        except LexicoError:
            work.close()
            raise
        while not call.ended.wait(seconds + GRACE_S):
            LOG.error("no answer within %g s: the client's event loop is stuck", seconds)
            if not writes:
                raise DeadlineExpired(f"no answer within {seconds:g} s")
        if not call.finished:
            call.drop()
            raise InternalError("the client's event loop ended under the call")
        return call.result()


def hash_of(key: str) -> bytes:
    """SGLang's key of a page: a SHA-256 as hex.

    Raises:
        InvalidInput: another key.
    """
    try:
        return bytes.fromhex(key)
    except ValueError as error:
        raise InvalidInput(f"key {key[:80]!r}: a hash as hex is expected") from error
