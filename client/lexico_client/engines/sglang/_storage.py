"""The backend without the engine: which pages are stored, loads into its pool, stores from it.

SGLang calls from threads of its own that wait for the answer: one prefetches, one backs up. The
calls of the service run on a loop of ours, and each ends within its deadline.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lexico_client._coding import Coding
from lexico_client._results import PageOutcome
from lexico_client.engines._coded_pages import CodedPages
from lexico_client.engines._coding import coding_of
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines._turns import for_each, until
from lexico_client.engines.sglang._config import StorageConfig
from lexico_client.engines.sglang._log import LOG
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput

T = TypeVar("T")

SCHEME: Final = "sglang-sha256"
"""SGLang's hash of a page: SHA-256 over that of the page before and the page's token ids, the first
one over what keeps requests apart (LoRA adapter, cache salt, namespace)."""
STUCK_S: Final = 5.0
"""After which, behind its deadline, it is said of a call that it does not end."""


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
        recent_tokens: int,
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
            recent_tokens, concurrent_pages: as `StorageConfig` has them.
            stores: whether there is an ingress.
        """
        self._page_tokens = base.page_tokens
        self._service = service
        self._counts = counts
        self._match_s = match_seconds
        self._load_s = load_seconds
        self._offload_s = offload_seconds
        # What a prompt has behind its last page is one token at least, and nobody tells how many.
        self._newest_pages = math.ceil((recent_tokens - 1) / base.page_tokens)
        self._at_a_time = concurrent_pages
        self._stores = stores
        self._pages = CodedPages(service.client, SCHEME, base, coding)

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
        coding = coding_of(service, settings, base, model, known_positions=False)
        return cls(
            base,
            coding,
            service,
            counts,
            match_seconds=settings.match_seconds,
            load_seconds=settings.load_seconds,
            offload_seconds=settings.offload_seconds,
            recent_tokens=settings.recent_tokens,
            concurrent_pages=settings.concurrent_pages,
            stores=settings.offload is not None,
        )

    @property
    def spec(self) -> CacheSpec:
        """What new pages belong to now."""
        return self._pages.spec

    def forget(self) -> None:
        """From now on finds nothing that was stored before."""
        self._pages.forget()
        LOG.warning("nothing is found any more that was stored before, as was asked for")

    def exists(self, hashes: Sequence[bytes], *, newest: bool = False) -> int:
        """Leading pages that are stored; 0 where the service does not say.

        Args:
            hashes: of consecutive pages.
            newest: they are a prompt's last. What a lossy codec has of its newest tokens is not
                promised then: they decide the next ones, and are computed.
        """
        if not hashes:
            return 0
        size = self._page_tokens
        self._counts.tokens("asked", len(hashes) * size)
        try:
            found = self._result(self._pages.found(hashes, self._match_s), self._match_s)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end SGLang's thread
            self._counts.warn("match", error)
            self._counts.request("failed")
            return 0
        leading = [*(spec is not None for spec in found), False].index(False)
        if newest:
            kept = len(hashes) - self._newest_pages
            while leading > max(kept, 0) and not _lossless(found[leading - 1]):
                leading -= 1
        self._counts.tokens("promised", leading * size)
        self._counts.request("hit" if leading else "miss")
        return leading

    def load(self, pages: Sequence[Page]) -> list[bool]:
        """Brings pages. Those that came are a run from the first on; the memory of others may hold
        anything."""
        size, came = self._page_tokens, 0
        try:
            came = self._result(self._loaded(pages), self._load_s)
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
        ended = dict(ended)  # a loop that was stuck may go on
        present = sum(outcome is PageOutcome.PRESENT for outcome in ended.values())
        self._counts.pages("present", present)
        self._counts.pages("sent", len(ended) - present)
        self._counts.pages("failed", len(once) - len(ended))
        return [page.hash in ended for page in pages]

    async def _loaded(self, pages: Sequence[Page]) -> int:
        """Leading pages that came."""
        left = until(self._load_s)
        specs = await self._pages.sources([page.hash for page in pages], self._match_s)
        wanted = len(pages)

        async def bring(number: int) -> None:
            nonlocal wanted
            page = pages[number]
            if number >= wanted:
                return
            try:
                await self._pages.load(specs[number], page.hash, page.memory, left())
            except Exception as error:  # noqa: BLE001 - whatever it is, the page is computed
                if number < wanted:
                    wanted = number
                    self._counts.warn("load", error)

        await for_each(range(len(pages)), bring, self._at_a_time)
        return wanted

    async def _stored(self, pages: Sequence[Page], ended: dict[bytes, PageOutcome]) -> None:
        """
        Args:
            pages: of different hashes.
            ended: gets what became of each that is in the store now.

        Raises:
            Exception: what the first of those that are not was refused for.
        """
        left, spec = until(self._offload_s), self._pages.spec
        lacking = await self._pages.lacking(spec, [page.hash for page in pages], self._match_s)
        both = list(zip(pages, lacking, strict=True))
        ended.update((page.hash, PageOutcome.PRESENT) for page, lacks in both if not lacks)
        refused: list[Exception] = []

        async def send(page: Page) -> None:
            if refused:
                return
            try:
                ended[page.hash] = await self._pages.send(spec, page.hash, page.memory, left)
            except Exception as error:  # noqa: BLE001 - told of once the others have ended
                refused.append(error)

        await for_each([page for page, lacks in both if lacks], send, self._at_a_time)
        if refused:
            raise refused[0]

    def _result(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Of work on the loop, which ends within so many seconds, or soon after. Memory that it
        reads or writes is the engine's again after the call, and others' soon: while a thread is
        there, the call goes on.

        Raises:
            LexicoError: what the work raised; it did not end; or there is no loop any more.
        """
        call = self._service.begin(work, seconds)
        while not call.ended.wait(seconds + STUCK_S):
            LOG.error("a thread is at the engine's memory still, %g s after it was due", STUCK_S)
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


def _lossless(spec: CacheSpec | None) -> bool:
    return spec is not None and spec.codec.lossless
