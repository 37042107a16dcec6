"""The service in a test of schedules: the real ingress, and pages that are checked as they come.

Nothing comes before the test lets it: pages of loads and of stores, and encoders, wait at gates.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from lexico_client._crew import Access
from lexico_client._results import Loaded, LoadSeconds, PageOutcome
from lexico_codec.checksum import Checksum
from lexico_codec.keys import page_keys
from lexico_codec.pieces import Piece
from lexico_codec.put_messages import PageEnd
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import DeadlineExpired, InternalError, StreamTruncated, Unavailable
from lexico_proto.metrics import Metrics
from lexico_services.config import OffloadConfig
from lexico_services.offload.ingress import Ingress
from lexico_services.offload.upload import Upload
from lexico_store.scopes import tenant_scope
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.vllm_loops import Gates, Loops
from tests.support.vllm_truth import Truth

SCOPE: Final = tenant_scope("a")
SLICE_WAIT_S: Final = 30.0
IDLE_S: Final = 120.0
_OUTCOMES: Final[dict[Outcome | None, PageOutcome]] = {
    None: PageOutcome.RECEIVED,
    Outcome.STORED: PageOutcome.STORED,
    Outcome.PRESENT: PageOutcome.PRESENT,
    Outcome.IN_PROGRESS: PageOutcome.IN_PROGRESS,
}


class Store:
    """What engines share."""

    def __init__(self, truth: Truth, room_bytes: int = 1 << 30) -> None:
        self.truth, self.loops, self.gates = truth, Loops(), Gates()
        self.loop = self.loops.add()
        self.pages: dict[bytes, Tensor] = {}
        """Key → page. A key stands for namespace and prefix."""
        self.models: dict[bytes, Hashable] = {}
        """Namespace → the weights that its first pages were computed with."""
        self.orders: dict[int, int] = {}
        """Order to store → a number of its own. Known by the object of its token ids, which all
        ranks are given."""
        self.wrong: list[str] = []
        self._ids: dict[bytes, list[int]] = {}
        self._sent: dict[bytes, dict[int, dict[Slice, Tensor]]] = {}
        """Key → order → what ranks sent of it."""
        bounds = OffloadConfig(
            idle_s=IDLE_S, slice_wait_s=SLICE_WAIT_S, max_inflight_bytes=room_bytes
        )
        self.metrics = Metrics()
        self.here, self.elsewhere = (Ingress(self, bounds, self.metrics) for _ in range(2))

    def stored(self, spec: CacheSpec, ids: Sequence[int]) -> int:
        """Leading pages of a sequence that there are."""
        there = (key in self.pages for key in page_keys(spec, ids))
        return [*there, False].index(False)

    def share(self, spec: CacheSpec, ids: list[int]) -> None:
        """An engine of before has stored a prompt."""
        size, computation = spec.page_tokens, self.truth.computation()
        for page, key in enumerate(page_keys(spec, ids)):
            first, stop = page * size, (page + 1) * size
            self.pages[key] = self.truth.of((0, None), ids, first, stop, computation)

    def sent(self, key: bytes, ids: list[int], order: int, held: Slice, part: Tensor) -> None:
        """A rank has sent its slice of the last page of these token ids."""
        self._ids[key] = ids
        self._sent.setdefault(key, {}).setdefault(order, {})[held] = part

    def let_come(self) -> None:
        """All that is under way goes on, to its end or until it waits for what does not come."""
        self.loops.run()
        while self.gates.open:
            self.gates.let(self.gates.open[0])
            self.loops.run()

    def expire(self) -> None:
        """Slices that wait for others are given up."""
        self.loops.skip(SLICE_WAIT_S + 1)

    @property
    def kept(self) -> dict[str, Any]:
        """What ingresses have of pages, once nothing is under way."""
        both = {"here": self.here, "elsewhere": self.elsewhere}
        return {
            name: (each.partial.waiting, each.budget.used)
            for name, each in both.items()
            if each.partial.waiting or each.budget.used
        }

    # Of the encoders

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> bytes:
        return b"".join(piece.tobytes() for piece in page)

    async def encode(self, job: PageJob, placed: bytes) -> PageDone:
        if await self.gates.passed("encode"):
            raise InternalError("as the test has it")
        if job.page_key in self.pages:
            return PageDone(Outcome.PRESENT)
        g, spec = job.spec.geometry, job.spec
        shape = (g.layers, 2, spec.page_tokens, g.kv_heads, g.head_dim)
        page = torch.frombuffer(bytearray(placed), dtype=g.torch_dtype).view(shape)
        self._check(job, page)
        self.pages[job.page_key] = page
        return PageDone(Outcome.STORED, len(placed))

    def _check(self, job: PageJob, page: Tensor) -> None:
        ids, size = self._ids[job.page_key], job.spec.page_tokens
        model = (self.models[job.spec.namespace], None)
        wanted = self.truth.of(model, ids, len(ids) - size, len(ids))
        if not self.truth.holds(page, wanted):
            self.wrong.append(f"a wrong page of {ids}")
        sent = self._sent[job.page_key].values()
        if not any(torch.equal(_put_together(page, slices), page) for slices in sent):
            self.wrong.append(f"a page of {ids} that is of no one computation")


def _put_together(like: Tensor, slices: dict[Slice, Tensor]) -> Tensor:
    whole = torch.full_like(like, float("nan"))
    for held, part in slices.items():
        layers, heads = held.layers, held.heads
        whole[layers.start : layers.stop, :, :, heads.start : heads.stop] = part
    return whole


class Client:
    """The service as the worker of one rank meets it."""

    def __init__(self, store: Store) -> None:
        self.store, self.gates = store, store.gates
        self.ingress = store.here

    async def load(
        self, spec: CacheSpec, token_ids: Any, target: Any, *, pages: range, timeout: float
    ) -> Loaded:
        access, view, came = Access.of_call(), target(len(pages)), 0
        keys = page_keys(spec, token_ids)
        reason: Exception | None = None
        try:
            async with asyncio.timeout(timeout):
                for page in pages:
                    there = not await self.gates.passed("load")
                    values = self.store.pages.get(keys[page]) if there else None
                    await self._decoded(access, spec, view, page, values)
                    if values is None:
                        reason = Unavailable("as the test has it")
                        break
                    came += 1
        except TimeoutError:
            reason = DeadlineExpired("as the test has it")
        return Loaded(0, came, len(pages), reason, 0, LoadSeconds(), access.end())  # type: ignore[arg-type]

    async def _decoded(
        self, access: Access, spec: CacheSpec, view: Any, page: int, values: Tensor | None
    ) -> None:
        """Of a page that then fails a part is in the memory already. A thread does it, which goes
        on whatever becomes of the call and its loop."""

        g = spec.geometry
        garbage = torch.full((g.layers, 2, spec.page_tokens, g.kv_heads, g.head_dim), -1.0)

        async def work() -> None:
            for group in range(spec.groups if values is not None else 1):
                with access.using() as allowed:
                    if not allowed:
                        return
                    if group == 0:
                        await self.gates.passed("thread")
                    memory = view(page, group)
                    if own := memory.layers:
                        # Behind the end of its call a thread has nothing to write that is right.
                        whole = garbage if values is None or access.over else values
                        memory.write(whole[spec.group_range(group).start :][own.start : own.stop])

        thread = asyncio.run_coroutine_threadsafe(work(), self.store.loop)
        await asyncio.shield(asyncio.wrap_future(thread))

    async def offload(
        self,
        spec: CacheSpec,
        token_ids: Any,
        source: Any,
        *,
        pages: int,
        assembly: bytes,
        timeout: float,
    ) -> Any:
        order = self.store.orders[id(token_ids)]
        ids = token_ids.tolist()[: pages * spec.page_tokens]
        async with asyncio.timeout(timeout):
            try:
                return await self._offloaded(spec, ids, source, assembly, order)
            except Unavailable:  # once more, from the match on
                return await self._offloaded(spec, ids, source, assembly, order)

    async def _offloaded(
        self, spec: CacheSpec, ids: list[int], source: Any, assembly: bytes, order: int
    ) -> Any:
        if await self.gates.passed("match"):
            raise Unavailable("as the test has it")
        keys, size = page_keys(spec, ids), spec.page_tokens
        missing = [page for page, key in enumerate(keys) if key not in self.store.pages]
        outcomes = dict.fromkeys(range(len(keys)), PageOutcome.PRESENT)
        if missing:
            upload = Upload(
                SCOPE,
                spec,
                ids[: (missing[-1] + 1) * size],
                missing,
                [keys[page] for page in missing],
                assembly=assembly,
            )
            stream = _Stream()
            put = asyncio.run_coroutine_threadsafe(
                self.ingress.put(upload, stream.parts()), self.store.loop
            )
            try:
                for page in missing:
                    if put.done():
                        break
                    if await self.gates.passed("store"):
                        raise Unavailable("as the test has it")
                    part = torch.cat([source(page, group) for group in range(spec.groups)]).clone()
                    of_page = ids[: (page + 1) * size]
                    self.store.sent(keys[page], of_page, order, Slice.of(spec), part)
                    stream.give(page, part.numpy().tobytes())
                stream.end()
                report = await asyncio.wrap_future(put)
            finally:
                stream.end(broken=True)
            outcomes |= {
                page: _OUTCOMES[None if done is None else done.outcome]
                for page, done in report.pages.items()
            }
        return SimpleNamespace(pages=list(outcomes.values()))


class _Stream:
    """The parts of an upload, on their way to the ingress."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[memoryview | PageEnd | Exception | None] = asyncio.Queue()
        self._ended = False

    def give(self, page: int, body: bytes) -> None:
        checksum = Checksum()
        checksum.add(body)
        self._parts.put_nowait(memoryview(body))
        self._parts.put_nowait(PageEnd(page, checksum.value()))

    def end(self, *, broken: bool = False) -> None:
        if not self._ended:
            self._ended = True
            self._parts.put_nowait(StreamTruncated("as the test has it") if broken else None)

    async def parts(self) -> AsyncIterator[memoryview | PageEnd]:
        while (part := await self._parts.get()) is not None:
            if isinstance(part, Exception):
                raise part
            yield part
