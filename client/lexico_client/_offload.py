"""Pages off the caller's memory and onto the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lexico_client._deadline import Budget, Clock, finished, settled
from lexico_client._group_messages import GroupSource, group_messages
from lexico_client._match import match_pages
from lexico_client._results import PageOutcome, PutReport, PutSeconds
from lexico_client._transport import Transport
from lexico_codec.checksum import Checksum
from lexico_codec.inputs import PageDigests, checked_inputs
from lexico_codec.put_messages import PageEnd, header_message, page_end_message
from lexico_codec.spec import CacheSpec
from lexico_codec.wire import spec_to_wire
from lexico_proto.errors import InternalError
from lexico_proto.v1 import offload_pb2 as offload

PageSource = Callable[[int, int], GroupSource]
"""`(page, group)` → the cache there, of the geometry's dtype: a tensor, `spec.group_shape(group)`,
or where all layers and heads of the group lie in an engine's memory, paged or not."""

_OUTCOMES = {
    offload.PAGE_OUTCOME_STORED: PageOutcome.STORED,
    offload.PAGE_OUTCOME_PRESENT: PageOutcome.PRESENT,
    offload.PAGE_OUTCOME_IN_PROGRESS: PageOutcome.IN_PROGRESS,
    offload.PAGE_OUTCOME_RECEIVED: PageOutcome.RECEIVED,
}


@dataclass(frozen=True)
class PageOffer:
    """The leading pages of a sequence, and where their bytes are."""

    spec: CacheSpec
    token_ids: npt.NDArray[np.uint32]
    page_keys: Sequence[bytes]
    """Of the pages offered."""
    source: PageSource
    durability: offload.Durability
    inputs: PageDigests = ()
    """What reached the model beside token ids."""

    def header(self, pages: Sequence[int]) -> offload.PutHeader:
        """The header of a Put of some of them, ascending."""
        end = (pages[-1] + 1) * self.spec.page_tokens
        return offload.PutHeader(
            spec=spec_to_wire(self.spec),
            token_ids=self.token_ids[:end].tolist(),
            pages=pages,
            page_keys=[self.page_keys[page] for page in pages],
            durability=self.durability,
            page_inputs=checked_inputs(self.inputs, pages[-1] + 1),
        )


async def put_missing(
    transport: Transport, executor: Executor, offer: PageOffer, budget: Budget, match_most: float
) -> PutReport:
    """Asks which pages are missing and sends those.

    Args:
        transport: the service.
        executor: reads the source.
        offer: the pages.
        budget: time for all of it.
        match_most: seconds for the question.

    Raises:
        ShapeMismatch, NonFiniteCache: what the source gave cannot be offloaded.
        LexicoError: the service refused, or could not take the pages.
    """
    clock, spec = Clock(), offer.spec
    matched = await match_pages(transport, spec, offer.page_keys, budget, match_most, renew=True)
    match_seconds = clock.lap()
    outcomes = dict.fromkeys(range(len(matched.present)), PageOutcome.PRESENT)
    missing = [page for page, present in enumerate(matched.present) if not present]
    sent = stored = 0
    there = offload.StageSeconds()
    if missing:
        upload = PageUpload(spec, offer.header(missing), offer.source, executor)
        response = await transport.put(upload.messages(), budget.left())
        answered, stored = outcomes_of(response, missing)
        outcomes |= answered
        sent, there = upload.bytes_sent, response.seconds
    return PutReport(
        tokens=len(outcomes) * spec.page_tokens,
        pages=tuple(outcomes.values()),
        bytes_sent=sent,
        bytes_stored=stored,
        seconds=PutSeconds(
            total=clock.total(),
            match=match_seconds,
            receive=there.receive,
            place=there.place,
            encoder=there.encoder,
            encode=there.encode,
            commit=there.commit,
        ),
    )


class PageUpload:
    """The messages of one Put, made as they are taken.

    One layer group is read in a worker thread while the one before it is sent: two are held.
    """

    def __init__(
        self,
        spec: CacheSpec,
        header: offload.PutHeader,
        source: PageSource,
        executor: Executor,
    ) -> None:
        self.bytes_sent = 0
        self._spec = spec
        self._header = header
        self._source = source
        self._executor = executor

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Header, then each page's bytes and its end, as serialised PutRequests.

        Raises:
            ShapeMismatch, NonFiniteCache: what the source gave cannot be offloaded.
        """
        yield header_message(self._header)
        order = [(p, g) for p in self._header.pages for g in range(self._spec.groups)]
        checksum = Checksum()
        running = self._start(*order[0], checksum)
        try:
            for (page, group), following in zip(order, [*order[1:], None], strict=True):
                made = await settled(running)
                ends, whole = group == self._spec.groups - 1, checksum
                if ends:
                    checksum = Checksum()
                if following is not None:
                    running = self._start(*following, checksum)
                for message in made:
                    yield message
                self.bytes_sent += self._spec.group_bytes(group)
                if ends:
                    yield page_end_message(PageEnd(page, whole.value()))
        finally:
            await finished(running)

    def _start(self, page: int, group: int, checksum: Checksum) -> asyncio.Future[list[bytes]]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, self._read, page, group, checksum)

    def _read(self, page: int, group: int, checksum: Checksum) -> list[bytes]:
        """In the worker thread: one group after another, so that the checksum is in order."""
        return group_messages(self._spec, page, group, self._source(page, group), checksum)


def outcomes_of(
    response: offload.PutResponse, sent: Sequence[int]
) -> tuple[dict[int, PageOutcome], int]:
    """Outcome of each page sent, and the bytes that the stored ones take.

    Raises:
        InternalError: the answer does not name exactly the pages sent, or names an outcome unknown
            here.
    """
    outcomes: dict[int, PageOutcome] = {}
    for result in response.pages:
        if result.outcome not in _OUTCOMES:
            raise InternalError(f"put: outcome {result.outcome} of page {result.page} is unknown")
        outcomes[result.page] = _OUTCOMES[result.outcome]
    if sorted(result.page for result in response.pages) != list(sent):
        raise InternalError("put: the answer does not name the pages that were sent")
    return outcomes, sum(result.stored_bytes for result in response.pages)
