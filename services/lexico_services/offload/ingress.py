"""Takes the bytes of pages and hands each page to an encoder: the logic of Put, without gRPC and
without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from lexico_codec.pieces import Piece
from lexico_codec.put_messages import PageEnd
from lexico_codec.spec import CacheSpec
from lexico_codec.upload import PageAssembler, checked_keys
from lexico_proto import request_id, tracing
from lexico_proto.errors import (
    DeadlineExpired,
    LexicoError,
    StreamDamaged,
    StreamTooLong,
)
from lexico_proto.metrics import OTHER, PROCESS, Metrics
from lexico_proto.tracing import Trace
from lexico_services.admission import ByteBudget
from lexico_services.config import OffloadConfig
from lexico_services.offload.page_counts import PageCounts
from lexico_services.policies import Policies
from lexico_services.quotas import FairTurns, TenantBytes
from lexico_store.lifetimes import now_us
from lexico_worker.page_encoder import PageDone, PageJob

T = TypeVar("T")

_log = logging.getLogger(__name__)


class EncoderPool(Protocol):
    """Where pages are encoded: Ray in production, a thread in tests."""

    async def place(self, page: list[Piece]) -> Any:
        """Brings a page to where encoders read it, and returns a reference. The caller empties the
        list afterwards.
        """

    def encode(self, job: PageJob, placed: Any) -> Awaitable[PageDone]:
        """Encodes and commits a page. Cancelling the awaitable cancels the work."""

    async def running(self) -> int | None:
        """How many encoders there are; None where that cannot be told now."""


@dataclass(frozen=True)
class Upload:
    """What a caller announces before the bytes."""

    scope: bytes
    spec: CacheSpec
    token_ids: Sequence[int]
    """From the first token of `first_page` to the end of the last page sent."""
    pages: Sequence[int]
    """Indices of the pages sent, ascending."""
    keys: Sequence[bytes]
    """Key of each of those pages."""
    first_page: int = 0
    """Where `token_ids` begin: a long sequence comes in several uploads."""
    parent_key: bytes = b""
    """Key of the page before `first_page`; empty for page 0."""
    trace: Trace = field(default=(), repr=False)
    """What the call is part of; goes along with each page."""
    inputs: Sequence[bytes] = ()
    """What reached the model beside token ids: a digest for each page from `first_page` on, or
    none."""
    tenant: str = OTHER
    """Name of the tenant, for counting."""

    def check(self) -> list[bytes]:
        """Whether tokens, pages and keys fit together.

        Returns:
            The keys of the sequence, from its first page to the last one sent.

        Raises:
            InvalidInput, TokenCountMismatch, PageKeyMismatch: naming what does not.
        """
        return checked_keys(
            self.spec,
            self.token_ids,
            self.pages,
            self.keys,
            first_page=self.first_page,
            parent_key=self.parent_key,
            inputs=self.inputs,
        )


@dataclass
class Seconds:
    """Time by stage, summed over the pages of one Put."""

    receive: float = 0.0
    place: float = 0.0
    encoder: float = 0.0
    encode: float = 0.0
    commit: float = 0.0


@dataclass
class Report:
    """What became of the pages of one Put."""

    pages: dict[int, PageDone | None] = field(default_factory=dict)
    """None for a page that was received and not waited for."""
    seconds: Seconds = field(default_factory=Seconds)


class Ingress:
    """Receives pages within a budget of bytes. For one event loop."""

    def __init__(
        self,
        encoders: EncoderPool,
        config: OffloadConfig,
        metrics: Metrics = PROCESS,
        policies: Policies | None = None,
    ) -> None:
        """
        Args:
            encoders: where pages go.
            config: bounds.
            metrics: where pages and bytes are counted; what encoders answer is counted here.
            policies: what each tenant may have.
        """
        self._policies = policies or Policies()
        self._tenant_bytes = TenantBytes(self._policies)
        self.turns = FairTurns(config.max_encoding)
        self._encoders = encoders
        self._config = config
        self.budget = ByteBudget(config.max_inflight_bytes)
        self.encoding_bytes = 0
        """Bytes of pages that were received and are not stored yet: with encoders, or waiting."""
        self._background: set[asyncio.Task[Any]] = set()
        self._counts = PageCounts(metrics)

    async def put(
        self,
        upload: Upload,
        parts: AsyncIterator[memoryview | PageEnd],
        *,
        wait_committed: bool = True,
    ) -> Report:
        """Receives every page of an upload and has it encoded and committed.

        At most `pages_ahead` pages wait for encoders while the next is received, and never more
        than the budget gave. Pages that were committed before a failure stay: each is whole.

        Args:
            upload: what is coming; checked before a byte is read.
            parts: the bytes of each page, at most `PIECE_BYTES` at a time, and its end.
            wait_committed: False answers once every byte is received.

        Raises:
            StreamTruncated, StreamTooLong, StreamDamaged: the bytes are not those announced.
            DeadlineExpired: the caller sent nothing for `idle_s`.
            Busy: over the budget, or no encoder takes more.
            QuotaExceeded: the tenant has in flight, or has stored, what it may.
            LexicoError: as `PageEncoder.encode_page`.
        """
        began_us = now_us()
        # In a thread: hashing a long sequence would hold up every caller.
        sequence = await asyncio.to_thread(upload.check)
        spec, report = upload.spec, Report()
        policy = self._policies.of(upload.scope)
        want = min(len(upload.pages), self._config.pages_ahead + 1)
        units = self._take(upload.scope, spec.page_bytes, want)
        tasks: list[asyncio.Task[PageDone]] = []
        handed_over = False
        try:
            stream = _PageStream(parts, self._config.idle_s)
            for page, key in zip(upload.pages, upload.keys, strict=True):
                # With n pages' room, n - 1 may be in encoders while this one is received.
                await _all_but(tasks, units - 1)
                started = time.perf_counter()
                pieces = await stream.page(page, spec.page_bytes)
                took_s = time.perf_counter() - started
                report.seconds.receive += took_s
                self._counts.received(upload.tenant, spec.page_bytes, took_s)
                job = PageJob(
                    upload.scope,
                    spec,
                    page,
                    key,
                    trace=upload.trace,
                    began_us=began_us,
                    sequence=() if tasks else sequence,
                    sequence_first=upload.first_page,
                    ttl_s=policy.page_ttl_s,
                    max_stored_bytes=policy.max_stored_bytes,
                )
                encoding = self._counted(upload.tenant, job, pieces, report)
                tasks.append(asyncio.create_task(encoding))
                del pieces
            await stream.expect_end()
            if wait_committed:
                await _all_but(tasks, 0)
                report.pages = {p: t.result() for p, t in zip(upload.pages, tasks, strict=True)}
            else:
                report.pages = dict.fromkeys(upload.pages)
                handed_over = True
                self._keep(self._tell_lost(tasks, upload.scope, units * spec.page_bytes))
            return report
        except StreamDamaged:
            self._counts.damaged.add()
            raise
        finally:
            if not handed_over:
                for task in tasks:
                    task.cancel()
                # A caller that goes away cancels us here as well: the room is given back even so.
                over = self._over(tasks, upload.scope, units * spec.page_bytes)
                await asyncio.shield(self._keep(over))

    async def encoders(self) -> int | None:
        """As `EncoderPool.running`."""
        return await self._encoders.running()

    async def close(self, within_s: float | None = None) -> None:
        """Waits for pages that nobody waits for.

        Args:
            within_s: seconds after which encoders are told to leave the rest; None waits for all.
        """
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=within_s)
            await _cancel(list(late))

    async def _counted(
        self, tenant: str, job: PageJob, pieces: list[Piece], report: Report
    ) -> PageDone:
        try:
            done = await self._encode(job, pieces, report)
        except BaseException as error:
            self._counts.failed(error)
            raise
        self._counts.done(tenant, job, done)
        return done

    async def _encode(self, job: PageJob, pieces: list[Piece], report: Report) -> PageDone:
        size = job.spec.page_bytes
        self.encoding_bytes += size
        try:
            return await self._placed_and_encoded(job, pieces, report)
        finally:
            self.encoding_bytes -= size

    async def _placed_and_encoded(
        self, job: PageJob, pieces: list[Piece], report: Report
    ) -> PageDone:
        started = time.perf_counter()
        try:
            with tracing.span("lexico.place", page=job.page):
                placed = [await self._encoders.place(pieces)]
        finally:
            pieces.clear()  # a task's exception would keep the page alive
        called = time.perf_counter()
        try:
            with tracing.span("lexico.encoder", page=job.page) as span:
                async with self.turns.turn(job.scope):
                    turned = time.perf_counter()
                    job = replace(
                        job,
                        trace=span.trace or job.trace,
                        request=request_id.current(),
                        fullness=self.encoding_bytes / self.budget.limit,
                    )
                    done = await self._encoders.encode(job, placed[0])
        finally:
            placed.clear()  # and in shared memory as well
        ended = time.perf_counter()
        self._counts.passed(called - started, turned - called, ended - turned)
        report.seconds.place += called - started
        report.seconds.encoder += ended - called
        report.seconds.encode += done.encode_s
        report.seconds.commit += done.commit_s
        return done

    def _take(self, scope: bytes, unit: int, most: int) -> int:
        """Pages that may be held, of those wanted: what the tenant may have, and what is free.

        Raises:
            QuotaExceeded, Busy, InvalidInput: not even one.
        """
        units = self.budget.take(unit, self._tenant_bytes.room(scope, unit, most))
        self._tenant_bytes.take(scope, units * unit)
        return units

    def _give_back(self, scope: bytes, size: int) -> None:
        self.budget.give_back(size)
        self._tenant_bytes.give_back(scope, size)

    async def _over(
        self, tasks: list[asyncio.Task[PageDone]], scope: bytes, size: int
    ) -> list[PageDone | BaseException]:
        """Waits for the end of each task, then gives their room back."""
        try:
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._give_back(scope, size)

    async def _tell_lost(
        self, tasks: list[asyncio.Task[PageDone]], scope: bytes, size: int
    ) -> None:
        for result in await self._over(tasks, scope, size):
            if isinstance(result, LexicoError):
                _log.warning("page lost reason=%s", result.reason)
            elif isinstance(result, BaseException):
                _log.error("page lost", exc_info=result)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Goes on with it whatever becomes of the caller; `close` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


class _PageStream:
    """Pages out of parts. A page counts once its end agrees with its bytes in length and sum."""

    def __init__(self, parts: AsyncIterator[memoryview | PageEnd], idle_s: float) -> None:
        self._parts = parts
        self._idle_s = idle_s

    async def page(self, page: int, page_bytes: int) -> list[Piece]:
        assembler = PageAssembler(page, page_bytes)
        while (part := await self._next()) is not None:
            if isinstance(part, PageEnd):
                return assembler.end(part.page, part.checksum)
            assembler.add(part)
        raise assembler.cut()

    async def expect_end(self) -> None:
        if await self._next() is not None:
            raise StreamTooLong("the upload carries more than its pages")

    async def _next(self) -> memoryview | PageEnd | None:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(self._parts, None)
        except TimeoutError:
            raise DeadlineExpired(
                f"no data for {self._idle_s:g} s: the upload is given up, its room is needed"
            ) from None


async def _all_but(tasks: Sequence[asyncio.Task[PageDone]], running: int) -> None:
    """Waits until at most `running` tasks are not done; raises the first failure of the others."""
    while True:
        pending = []
        for task in tasks:
            if task.done():
                task.result()
            else:
                pending.append(task)
        if len(pending) <= running:
            return
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
