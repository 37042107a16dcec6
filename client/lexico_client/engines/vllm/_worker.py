"""The workers' side: loads into the engine's blocks, and stores from copies of them.

Both run on the service's loop while the engine computes. The engine's thread only begins them: for
a load that is all, for a store it copies the pages, so that their blocks are free at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from lexico_client._crew import Access
from lexico_client._loop_thread import Call
from lexico_client._results import Loaded, LoadSeconds, PageOutcome, PutReport
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import REST_S, LoadOrder, Orders, StoreOrder
from lexico_client.engines.vllm._paged import PagedCache, PageTarget
from lexico_client.engines.vllm._ranks import Rank
from lexico_codec.forks import renew_in_children
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    DeadlineExpired,
    LexicoError,
    Unavailable,
    UnknownDictionary,
)

_LOOK_S: Final = 0.001
_UNDER_WAY: Final = (PageOutcome.STORED, PageOutcome.RECEIVED)


@dataclass(frozen=True)
class _Staged:
    """Copies of the pages of a prompt."""

    order: StoreOrder
    pages: int
    """Leading pages of the sequence; those from `order.first_page` on are here."""
    copies: Tensor
    """`[layers, 2, tokens, kv_heads, head_dim]`, from the first token of `order.first_page` on."""
    ready: Callable[[], bool]
    """Whether the copies are made."""


class WorkerSide:
    """Loads and stores for one worker: what its rank holds of each page."""

    def __init__(
        self,
        spec: CacheSpec,
        service: Service,
        counts: Counts,
        dictionary: DictionarySet | None = None,
        *,
        rank: Rank | None = None,
        load_seconds: float,
        offload_seconds: float,
        drain_seconds: float,
        staging_bytes: int,
        concurrent_loads: int,
        concurrent_stores: int,
    ) -> None:
        """
        Args:
            spec: what pages belong to, but for what an order says of codec, set and salt.
            service: of this side, or of all that are in this process.
            counts: of this side.
            dictionary: the set that was given or is built in: it is kept, and registered with the
                service when that lacks it. Any other is fetched by its digest.
            rank: what this worker holds of the model; None for all of it.
            load_seconds: from the order of a load to its end, waiting included.
            offload_seconds, drain_seconds, staging_bytes, concurrent_loads, concurrent_stores: as
                `ConnectorConfig` has them.
        """
        self._spec = spec
        self._service = service
        self._counts = counts
        self._rank = rank
        self._page_bytes = (spec if rank is None else rank.of(spec)).page_bytes
        self._dictionary = dictionary
        self._kept = self._registered = False
        self._load_s = load_seconds
        self._offload_s = offload_seconds
        self._drain_s = drain_seconds
        self._most = staging_bytes
        self._turns = concurrent_loads, concurrent_stores
        self._cache: PagedCache | None = None
        self._arrived: set[str] = set()
        self._bad: set[int] = set()
        self._orders: dict[str, LoadOrder] = {}
        """Request → its load, which is under way or waits."""
        self._over: set[str] = set()
        """Of these, the ones that have ended."""
        self._idle()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Loads and stores of before are the parent's: here nothing will come of them."""
        for order in self._orders.values():
            self._bad |= PageTarget(self._memory, order.spec, order).lost(0)
            self._arrived.add(order.request_id)
        self._orders, self._over = {}, set()
        self._idle()

    def _idle(self) -> None:
        """Nothing is under way."""
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        loads, stores = self._turns
        self._loading, self._storing = asyncio.Semaphore(loads), asyncio.Semaphore(stores)
        self._staged = self._stores = 0

    def register(self, cache: PagedCache) -> None:
        """Gives the engine's memory."""
        self._cache = cache

    def begin(self, orders: Orders) -> None:
        """Begins loads, with each step of the engine. Each will be told of by `arrived`."""
        for order in orders.loads:
            with self._lock:
                self._orders[order.request_id] = order

            def ended(call: Call[int], order: LoadOrder = order) -> None:
                self._end(order, call)

            try:
                work = self._load(order, _reached(self._memory.device))
                self._service.begin(work, self._load_s, ended)
            except Exception as error:  # noqa: BLE001 - whatever it is, the request is computed
                self._counts.warn("load", error)
                self._tell(order, 0)

    def stage(self, orders: Orders) -> None:
        """Copies pages that are to be stored; called once the step is computed, or is certain to be
        before what is started on its device now."""
        if self._rank is not None and not self._rank.sends:
            return
        for order in orders.stores:
            staged = self._copied(order)
            if staged is None:
                continue
            pages = staged.pages - order.first_page

            def ended(call: Call[None], order: StoreOrder = order, pages: int = pages) -> None:
                self._freed(order, pages, _error_of(call))

            try:
                self._service.begin(self._store(staged), then=ended)
            except LexicoError as error:
                self._freed(order, pages, error)

    def over(self, names: Iterable[str]) -> None:
        """Requests that have ended: a load that waits for its turn is not begun for them, and one
        that is under way goes on to its end."""
        with self._lock:
            self._over |= self._orders.keys() & set(names)

    def arrived(self) -> set[str]:
        """Requests whose loads have ended since the last call, whatever came of them. The blocks of
        those are no longer written to."""
        with self._lock:
            arrived, self._arrived = self._arrived, set()
        return arrived

    def rest(self) -> None:
        """Waits a moment for a load to end, where there is one: of an engine that has nothing to
        compute meanwhile."""
        with self._ended:
            self._ended.wait_for(lambda: self._arrived or not self._orders, REST_S)

    def bad_blocks(self) -> set[int]:
        """Blocks that were not loaded, since the last call; to be asked for after `arrived`."""
        with self._lock:
            bad, self._bad = self._bad, set()
        return bad

    @property
    def stores_under_way(self) -> int:
        """Prompts that are being stored, or wait for it."""
        return self._stores

    def close(self) -> None:
        """Waits for stores, `drain_seconds` at most, and ends all else."""
        self._service.close(self._drained(), self._drain_s + 1.0)

    @property
    def _memory(self) -> PagedCache:
        if self._cache is None:
            raise Unavailable("the engine has registered no caches yet")
        return self._cache

    async def _load(self, order: LoadOrder, reached: Callable[[], bool]) -> int:
        """Pages that came.

        Raises:
            Exception: none did.
        """
        access = Access.of_call()
        target = PageTarget(self._memory, order.spec, order)
        loaded = await self._loaded(order, target, reached)
        with access.using() as allowed:
            if not allowed:
                raise DeadlineExpired(f"load: not there within {self._load_s:g} s")
            target.settle(loaded.pages)
        if loaded.reason is not None:
            self._counts.warn("load", loaded.reason)
        return loaded.pages

    async def _loaded(
        self, order: LoadOrder, target: PageTarget, reached: Callable[[], bool]
    ) -> Loaded:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._load_s
        try:
            async with asyncio.timeout_at(end):
                await self._loading.acquire()
        except TimeoutError as error:
            raise DeadlineExpired(
                f"load: others were loaded for {self._load_s:g} s before it"
            ) from error
        try:
            if order.request_id in self._over:
                return Loaded(0, 0, 0, None, 0, LoadSeconds())
            await _until(reached)
            left = max(end - loop.time(), 0.001)
            await self._keep_dictionary()
            loaded = await self._service.client.load(
                order.spec, order.token_ids, target, pages=target.pages, timeout=left
            )
        finally:
            self._loading.release()
        if loaded.unfinished is not None:  # a thread may still write into the blocks
            await _until(loaded.unfinished.is_set)
        return loaded

    def _end(self, order: LoadOrder, call: Call[int]) -> None:
        """Nobody writes into the order's blocks any more: its request waits for that."""
        error = _error_of(call)
        if error is not None:
            self._counts.warn("load", error)
        self._tell(order, call.result() if error is None else 0)

    def _tell(self, order: LoadOrder, pages: int) -> None:
        target, wanted = PageTarget(self._memory, order.spec, order), order.stop - order.start
        lost, stop = target.lost(pages), (target.pages.start + pages) * self._spec.page_tokens
        came = max(0, min(order.stop, stop) - order.start) if lost else wanted
        self._counts.tokens("loaded", came)
        self._counts.tokens("lost", wanted - came)
        with self._ended:
            self._bad |= lost
            self._arrived.add(order.request_id)
            self._orders.pop(order.request_id, None)
            self._over.discard(order.request_id)
            self._ended.notify_all()

    def _copied(self, order: StoreOrder) -> _Staged | None:
        """As many of the pages as there is room for."""
        size = self._spec.page_tokens
        pages = len(order.token_ids) // size
        with self._lock:
            room = max(0, self._most - self._staged) // self._page_bytes
            fitting = min(pages - order.first_page, room)
            self._staged += fitting * self._page_bytes
            self._stores += bool(fitting)
        dropped = pages - order.first_page - fitting
        if dropped:
            self._counts.pages("dropped", dropped)
        if not fitting:
            return None
        self._counts.staged(self._staged)
        memory, first = self._memory, order.first_page * size
        try:
            copies = memory.copied(order.blocks, first, fitting * size)
        except Exception as error:  # noqa: BLE001 - a device that is full, say: its step goes on
            self._freed(order, fitting, error)
            return None
        return _Staged(order, order.first_page + fitting, copies, _reached(memory.device))

    async def _store(self, staged: _Staged) -> None:
        """
        Raises:
            Exception: not all pages are stored. Of the engine's requests none depends on it.
        """
        await _until(staged.ready)
        staged = replace(staged, copies=staged.copies.cpu())  # a device's memory is scarce
        async with self._storing:
            await self._keep_dictionary()
            report = await self._offloaded(staged)
        ours = report.pages[staged.order.first_page :]
        sent = sum(outcome in _UNDER_WAY for outcome in ours)
        self._counts.pages("sent", sent)
        self._counts.pages("present", len(ours) - sent)

    async def _offloaded(self, staged: _Staged) -> PutReport:
        order, client = staged.order, self._service.client
        spec = order.spec if self._rank is None else self._rank.of(order.spec)
        ours = self._dictionary is not None and self._dictionary.digest == spec.dictionary
        if self._dictionary is not None and ours and not (spec.is_whole or self._registered):
            # Ahead: the rank that completes a page is told that the set lacks, and then the slices
            # of the others are gone.
            await client.register_dictionary(self._dictionary)
            self._registered = True

        async def send() -> PutReport:
            return await client.offload(
                spec,
                order.token_ids,
                self._source(staged, spec),
                pages=staged.pages,
                assembly=order.assembly,
                timeout=self._offload_s,
            )

        try:
            return await send()
        except UnknownDictionary:
            if self._dictionary is None or self._dictionary.digest != spec.dictionary:
                raise
        await client.register_dictionary(self._dictionary)
        return await send()

    async def _keep_dictionary(self) -> None:
        """So that no load fetches the set that is here."""
        if self._dictionary is not None and not self._kept:
            await self._service.client.keep_dictionary(self._dictionary)
            self._kept = True

    def _source(self, staged: _Staged, spec: CacheSpec) -> Callable[[int, int], Tensor]:
        size, first = spec.page_tokens, staged.order.first_page

        def source(page: int, group: int) -> Tensor:
            if page < first:
                raise Unavailable(f"page {page} was stored, and left the store meanwhile")
            layers = spec.group_range(group)
            part = staged.copies[layers.start : layers.stop]
            return part.narrow(2, (page - first) * size, size)

        return source

    def _freed(self, order: StoreOrder, pages: int, error: BaseException | None) -> None:
        """Copies of so many pages of an order are no longer there."""
        if error is not None:
            self._counts.pages("failed", pages)
            self._counts.warn("store", error)
        with self._lock:
            self._staged -= pages * self._page_bytes
            self._stores -= 1
        self._counts.staged(self._staged)

    async def _drained(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_s
        while self._stores and loop.time() < end:
            await asyncio.sleep(_LOOK_S)
        if self._stores:
            LOG.warning("ends before all is stored: prompts=%d", self._stores)


def _reached(device: torch.device) -> Callable[[], bool]:
    """Whether a device has done what it was given before this call. What others wrote into a block
    before it was given to a load must not come after the load."""
    if device.type != "cuda":
        return lambda: True
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.query


def _error_of(call: Call[Any]) -> BaseException | None:
    """Why a call that has ended has no result."""
    try:
        call.result()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the engine goes on
        return error
    return None


async def _until(state: Callable[[], bool]) -> None:
    while not state():
        await asyncio.sleep(_LOOK_S)
