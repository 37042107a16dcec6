"""Takes the bytes of pages and hands each page to an encoder: the logic of Put, without gRPC and
without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from lexico_codec.pieces import Piece
from lexico_codec.put_messages import PageEnd
from lexico_codec.slices import SlicedPage
from lexico_proto import request_id, tracing
from lexico_proto.errors import LexicoError, StreamDamaged
from lexico_proto.metrics import PROCESS, Metrics
from lexico_services.admission import ByteBudget
from lexico_services.config import OffloadConfig
from lexico_services.offload.page_counts import PageCounts
from lexico_services.offload.page_stream import PageStream
from lexico_services.offload.partial_pages import PageName, PartialPages, WholePage
from lexico_services.offload.upload import Report, Upload
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
        self.partial = PartialPages(
            config.max_inflight_bytes,
            config.slice_wait_s,
            self._policies,
            self._take,
            self._give_back,
            metrics,
        )

    async def put(
        self,
        upload: Upload,
        parts: AsyncIterator[memoryview | PageEnd],
        *,
        wait_committed: bool = True,
    ) -> Report:
        """Receives every page of an upload and has it encoded and committed; of slices, those pages
        that they complete. Others wait for the slices of other ranks, and were received.

        At most `pages_ahead` pages wait for encoders while the next is received, and never more
        than the budget gave. Pages that were committed before a failure stay: each is whole.

        Args:
            upload: what is coming; checked before a byte is read.
            parts: the bytes of each page, at most `PIECE_BYTES` at a time, and its end.
            wait_committed: False answers once every byte is received.

        Raises:
            StreamTruncated, StreamTooLong, StreamDamaged: the bytes are not those announced.
            DeadlineExpired: the caller sent nothing for `idle_s`, or a page too slowly.
            Busy: over the budget, or no encoder takes more.
            QuotaExceeded: the tenant has in flight, or has stored, what it may.
            LexicoError: as `PageEncoder.encode_page`.
        """
        began_us = now_us()
        # In a thread: hashing a long sequence would hold up every caller.
        sequence = await asyncio.to_thread(upload.check)
        if not upload.spec.is_whole:
            return await self._put_slices(upload, parts, sequence, began_us, wait_committed)
        spec, report = upload.spec, Report()
        want = min(len(upload.pages), self._config.pages_ahead + 1)
        units = self._take(upload.scope, spec.page_bytes, want)
        tasks: list[asyncio.Task[PageDone]] = []
        handed_over = False
        try:
            stream = self._stream(parts)
            for page, key in zip(upload.pages, upload.keys, strict=True):
                # With n pages' room, n - 1 may be in encoders while this one is received.
                await _all_but(tasks, units - 1)
                pieces, _ = await self._received(stream, upload, page, report)
                job = self._job(upload, page, key, began_us, () if tasks else sequence)
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
        finally:
            if not handed_over:
                for task in tasks:
                    task.cancel()
                # A caller that goes away cancels us here as well: the room is given back even so.
                over = self._over(tasks, upload.scope, units * spec.page_bytes)
                await asyncio.shield(self._keep(over))

    async def _put_slices(
        self,
        upload: Upload,
        parts: AsyncIterator[memoryview | PageEnd],
        sequence: Sequence[bytes],
        began_us: int,
        wait_committed: bool,
    ) -> Report:
        """`put` of slices. A page that became whole is encoded whatever becomes of this caller: the
        slices of others are in it, and they will not send them again."""
        spec, report, tasks = upload.spec, Report(), dict[int, asyncio.Task[PageDone]]()
        stream = self._stream(parts)
        for page, key in zip(upload.pages, upload.keys, strict=True):
            await _all_but(list(tasks.values()), self._config.pages_ahead)
            name = PageName(
                upload.scope, spec.namespace, key, page, spec.geometry.dtype, upload.assembly
            )
            async with self.partial.receiving(name, spec) as receipt:
                pieces, checksum = await self._received(stream, upload, page, report)
                found = receipt.add(pieces, checksum, began_us)
                del pieces
            report.pages[page] = None
            if isinstance(found, WholePage):
                job = self._job(upload, page, key, found.began_us, () if tasks else sequence)
                tasks[page] = task = asyncio.create_task(
                    self._assembled(found.page, upload.tenant, job, report)
                )
                task.add_done_callback(self.partial.encoded(found))
                self._keep(self._tell_failed(task))
            else:
                report.pages[page] = found
        await stream.expect_end()
        if wait_committed:
            await _all_but(list(tasks.values()), 0)
            report.pages |= {page: task.result() for page, task in tasks.items()}
        return report

    async def _assembled(
        self, page: SlicedPage, tenant: str, job: PageJob, report: Report
    ) -> PageDone:
        # In a thread: slices of some of the heads are copied together.
        pieces = await asyncio.to_thread(page.take)
        return await self._counted(tenant, job, pieces, report)

    def _stream(self, parts: AsyncIterator[memoryview | PageEnd]) -> PageStream:
        return PageStream(parts, self._config.idle_s, self._config.min_bytes_per_s)

    async def _received(
        self, stream: PageStream, upload: Upload, page: int, report: Report
    ) -> tuple[list[Piece], int]:
        """The bytes of the next page or slice, and their checksum."""
        size, started = upload.spec.page_bytes, time.perf_counter()
        try:
            pieces, checksum = await stream.page(page, size)
        except StreamDamaged:
            self._counts.damaged.add()
            raise
        took_s = time.perf_counter() - started
        report.seconds.receive += took_s
        self._counts.received(upload.tenant, size, took_s)
        return pieces, checksum

    def _job(
        self, upload: Upload, page: int, key: bytes, began_us: int, sequence: Sequence[bytes]
    ) -> PageJob:
        policy = self._policies.of(upload.scope)
        return PageJob(
            upload.scope,
            upload.spec.whole,
            page,
            key,
            trace=upload.trace,
            began_us=began_us,
            sequence=sequence,
            sequence_first=upload.first_page,
            ttl_s=policy.page_ttl_s,
            max_stored_bytes=policy.max_stored_bytes,
        )

    async def encoders(self) -> int | None:
        """As `EncoderPool.running`."""
        return await self._encoders.running()

    async def close(self, within_s: float | None = None) -> None:
        """Waits for pages that nobody waits for. Slices that wait for others are let go.

        Args:
            within_s: seconds after which encoders are told to leave the rest; None waits for all.
        """
        self.partial.drop_all()
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
        self.partial.tell_freed()

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
            _tell(result)

    async def _tell_failed(self, task: asyncio.Task[PageDone]) -> None:
        _tell(*await asyncio.gather(task, return_exceptions=True))

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Goes on with it whatever becomes of the caller; `close` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _tell(result: PageDone | BaseException) -> None:
    """Logs a page that nobody may have been told about."""
    if isinstance(result, LexicoError):
        _log.warning("page lost reason=%s", result.reason)
    elif isinstance(result, BaseException):
        _log.error("page lost", exc_info=result)


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
