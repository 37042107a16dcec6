"""What the tier does, without vLLM: questions, and jobs that bring and send chunks.

vLLM's scheduler calls, and waits for nothing. Jobs run on a loop of ours, each within a deadline;
what became of them is told when the scheduler asks for it, of each once. Until then the chunks of a
job are pinned in the primary tier, so they are read and written without a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from lexico_client._loop_thread import Call
from lexico_client._results import PageOutcome
from lexico_client.engines._coded_pages import CodedPages
from lexico_client.engines._counts import WARN_EVERY_S, Counts
from lexico_client.engines._service import Service
from lexico_client.engines._turns import for_each, in_turn, until
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm.tier._config import TierConfig
from lexico_client.engines.vllm.tier._layout import Chunks
from lexico_client.engines.vllm.tier._lookups import Lookups
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import Busy, Cancelled, InternalError, LexicoError, Unsupported

HASH_BYTES: Final = 32
"""Of SHA-256. What else vLLM can be told to use is no cryptographic hash."""
_GROUP_BYTES: Final = 4
"""With which a key of vLLM's ends: the number of the chunk's group."""
STUCK_S: Final = 5.0
"""After which it is said that a job does not end, and then once a minute."""
_LOOK_S: Final = 0.001


class Job(NamedTuple):
    """A transfer that vLLM asks for."""

    number: int
    keys: Sequence[bytes]
    """vLLM's names of the chunks."""
    slots: Sequence[int]
    """Where in the primary tier they are, or are to be."""


@dataclass(frozen=True)
class Ended:
    """What became of a job."""

    number: int
    keys: Collection[bytes] = ()
    """Chunks that came, or that are stored now."""
    success: bool = False
    """Whether these are all."""
    seconds: float = 0.0
    moved: int = 0
    """Chunks that were brought or sent."""


@dataclass(frozen=True)
class _Running:
    job: Job
    loads: bool
    call: Call[Ended] | None
    """None where there is nothing to wait for."""
    skipped: bool = False
    """Whether nothing was to be done."""


class TierSide:
    """The tier. Every question and every job is answered, whatever becomes of the service."""

    def __init__(
        self,
        pages: CodedPages,
        chunks: Chunks,
        service: Service,
        counts: Counts,
        settings: TierConfig,
        *,
        chunk_tokens: int,
        chunk_bytes: int,
    ) -> None:
        """
        Args:
            pages: of the engine's model.
            chunks: the primary tier's memory.
            service: for this alone.
            counts: of the tier.
            settings: deadlines and bounds.
            chunk_tokens, chunk_bytes: of a chunk.
        """
        self._pages = pages
        self._chunks: Chunks | None = chunks
        self._service = service
        self._counts = counts
        self._settings = settings
        self._tokens = chunk_tokens
        self.chunk_bytes = chunk_bytes
        self.after_fork()
        renew_in_children(self)
        self._running: dict[int, _Running] = {}
        self._held = 0
        self._ending = False
        self.lookups = Lookups(self._ask, counts, chunk_tokens)

    def after_fork(self) -> None:
        """A child has turns of its own; jobs of before have ended there, see `Service`."""
        self._loading = asyncio.Semaphore(self._settings.concurrent_loads)
        self._storing = asyncio.Semaphore(self._settings.concurrent_stores)

    def load(self, job: Job) -> None:
        """Begins to bring chunks."""
        self._begin(job, self._loaded, loads=True)

    def store(self, job: Job) -> None:
        """Begins to send the chunks that the service lacks."""
        size = len(job.keys) * self.chunk_bytes
        if self._settings.offload is None:
            self._running[job.number] = _Running(job, False, None, skipped=True)
        elif self._held + size > self._settings.staging_bytes:
            self._counts.pages("dropped", len(job.keys))
            self._counts.warn("store", Busy(f"chunks of {self._held} bytes are being stored"))
            self._running[job.number] = _Running(job, False, None)
        else:
            self._hold(size)
            self._begin(job, self._stored, loads=False)
            if self._running[job.number].call is None:
                self._hold(-size)

    def ended(self) -> list[Ended]:
        """Jobs that have ended since the last time, in the order in which they began."""
        done = [each for each in self._running.values() if _is_over(each)]
        return [self._take(each) for each in done]

    @property
    def stores_under_way(self) -> int:
        """Jobs that send chunks, and have not ended."""
        running = list(self._running.values())
        return sum(not each.loads and not _is_over(each) for each in running)

    def drain(self) -> None:
        """Returns once every job has ended: chunks that are on their way arrive, others do not
        begin. From then on nothing is found that was stored before: vLLM asks for this when its
        caches are reset, as where weights were changed in place."""
        self._ending = True
        try:
            self._wait_for_jobs()
        finally:
            self._ending = False
        self._pages.forget()
        LOG.warning("nothing is found any more that was stored before: the caches were reset")

    def close(self) -> None:
        """Waits for stores, `drain_seconds` at most, and ends all else.

        Raises:
            InternalError: a job does not end, so the primary tier is read or written still.
        """
        seconds = self._settings.drain_seconds
        self._service.close(self._drained(seconds), seconds + 1.0)
        running = [each for each in self._running.values() if not _is_over(each)]
        if running:
            raise InternalError(f"{len(running)} jobs do not end: the primary tier is in use")
        self._chunks = None

    def _ask(self, keys: Sequence[bytes]) -> Call[list[bool]]:
        async def asked() -> list[bool]:
            hashes = [hash_of(key) for key in keys]
            found = await self._pages.found(hashes, self._settings.match_seconds)
            return [spec is not None for spec in found]

        return self._service.begin(asked(), self._settings.match_seconds)

    def _begin(self, job: Job, work: Callable[[Job], Awaitable[Ended]], *, loads: bool) -> None:
        what = "load" if loads else "store"
        settings = self._settings
        seconds = settings.load_seconds if loads else settings.offload_seconds

        async def run() -> Ended:
            loop = asyncio.get_running_loop()
            began = loop.time()
            ended = Ended(job.number)
            try:
                ended = await work(job)
            except Exception as error:  # noqa: BLE001 - a miss, or a chunk that is not stored
                self._counts.warn(what, error)
            return replace(ended, seconds=loop.time() - began)

        call: Call[Ended] | None = None
        try:
            call = self._service.begin(run(), seconds)
        except LexicoError as error:
            self._counts.warn(what, error)
        self._running[job.number] = _Running(job, loads, call)

    def _take(self, running: _Running) -> Ended:
        job, call = running.job, running.call
        del self._running[job.number]
        ended = Ended(job.number, success=running.skipped)
        if call is not None:
            try:
                ended = call.result()
            except Exception as error:  # noqa: BLE001 - it was cut off with its loop
                self._counts.warn("load" if running.loads else "store", error)
            if not running.loads:
                self._hold(-len(job.keys) * self.chunk_bytes)
        if running.loads:
            lost = set(job.keys).difference(ended.keys)
            self._counts.tokens("loaded", len(ended.keys) * self._tokens)
            self._counts.tokens("lost", len(lost) * self._tokens)
            self.lookups.lost(lost)
        elif call is not None:
            self._counts.pages("sent", ended.moved)
            self._counts.pages("present", len(ended.keys) - ended.moved)
            self._counts.pages("failed", len(job.keys) - len(ended.keys))
        return ended

    async def _loaded(self, job: Job) -> Ended:
        left = until(self._settings.load_seconds)
        hashes = [hash_of(key) for key in job.keys]
        specs = await self._pages.sources(hashes, self._settings.match_seconds)
        came: list[bytes] = []
        wanted = len(hashes)

        async def bring(number: int) -> None:
            nonlocal wanted
            try:
                async with in_turn(self._loading, left):
                    if number >= wanted:
                        return  # no request uses a chunk behind one that is missing
                    memory = self._memory.memory(job.slots[number])
                    await self._pages.load(specs[number], hashes[number], memory, left())
                came.append(job.keys[number])
            except Exception as error:  # noqa: BLE001 - whatever it is, the chunk is computed
                if number < wanted:
                    wanted = number
                    self._counts.warn("load", error)

        await for_each(range(wanted), bring, min(wanted, self._settings.concurrent_loads))
        return Ended(job.number, came, len(came) == len(hashes), moved=len(came))

    async def _stored(self, job: Job) -> Ended:
        left, spec = until(self._settings.offload_seconds), self._pages.spec
        hashes = [hash_of(key) for key in job.keys]
        lacking = await self._pages.lacking(spec, hashes, self._settings.match_seconds)
        there = [key for key, lacks in zip(job.keys, lacking, strict=True) if not lacks]
        sent: list[bytes] = []
        refused: list[Exception] = []

        async def send(number: int) -> None:
            if refused:
                return
            try:
                async with in_turn(self._storing, left):
                    memory = self._memory.memory(job.slots[number])
                    outcome = await self._pages.send(spec, hashes[number], memory, left)
                kept = there if outcome is PageOutcome.PRESENT else sent
                kept.append(job.keys[number])
            except Exception as error:  # noqa: BLE001 - no request depends on it
                refused.append(error)

        wanted = [number for number, lacks in enumerate(lacking) if lacks]
        await for_each(wanted, send, min(len(wanted), self._settings.concurrent_stores))
        if refused:
            self._counts.warn("store", refused[0])
        stored = [*there, *sent]
        return Ended(job.number, stored, len(stored) == len(hashes), moved=len(sent))

    @property
    def _memory(self) -> Chunks:
        if self._chunks is None or self._ending:
            raise Cancelled("vLLM ends, or resets its caches")
        return self._chunks

    def _hold(self, size: int) -> None:
        """Counts bytes of the primary tier that are pinned to be stored."""
        self._held += size
        self._counts.staged(self._held)

    def _wait_for_jobs(self) -> None:
        for running in list(self._running.values()):
            patience = STUCK_S
            while running.call is not None and not running.call.ended.wait(patience):
                LOG.error("a job does not end: number=%d", running.job.number)
                patience = WARN_EVERY_S

    async def _drained(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while self.stores_under_way and clock() < end:
            await asyncio.sleep(_LOOK_S)
        if self.stores_under_way:
            LOG.warning("ends before all is stored: jobs=%d", self.stores_under_way)


def hash_of(key: bytes) -> bytes:
    """vLLM's hash of the last block of a chunk, which binds all tokens up to its end.

    Args:
        key: an `OffloadKey`.

    Raises:
        Unsupported: of no cryptographic hash, or of a group that is not the first.
    """
    found, group = key[:-_GROUP_BYTES], key[-_GROUP_BYTES:]
    if len(found) != HASH_BYTES or any(group):
        raise Unsupported(
            f"a key of {len(key)} bytes, group {group.hex()}: blocks of the first group with "
            "hashes of a cryptographic kind are needed; start with "
            "--prefix-caching-hash-algo sha256_cbor"
        )
    return found


def _is_over(running: _Running) -> bool:
    return running.call is None or running.call.ended.is_set()
