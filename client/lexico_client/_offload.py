"""Pages off the caller's memory and onto the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lexico_client._crew import Shift
from lexico_client._deadline import Budget, Clock, may_retry, pause
from lexico_client._group_messages import GroupSource, group_messages
from lexico_client._match import match_pages
from lexico_client._parts import first_page_of, pages_of_put, parts
from lexico_client._results import PageOutcome, PutReport, PutSeconds
from lexico_client._transport import Transport
from lexico_codec.checksum import Checksum
from lexico_codec.inputs import PageDigests, checked_inputs
from lexico_codec.put_messages import PageEnd, header_message, page_end_message
from lexico_codec.spec import CacheSpec
from lexico_codec.wire import spec_to_wire
from lexico_proto.errors import (
    InternalError,
    LexicoError,
    PageKeyMismatch,
    TokenCountMismatch,
    Unsupported,
)
from lexico_proto.v1 import offload_pb2 as offload

PageSource = Callable[[int, int], GroupSource]
"""`(page, group)` → the cache there, of the geometry's dtype: a tensor, `spec.group_shape(group)`,
or where all layers and heads of the group lie in an engine's memory, paged or not. Groups of a
slice are counted within it."""

_OUTCOMES = {
    offload.PAGE_OUTCOME_STORED: PageOutcome.STORED,
    offload.PAGE_OUTCOME_PRESENT: PageOutcome.PRESENT,
    offload.PAGE_OUTCOME_IN_PROGRESS: PageOutcome.IN_PROGRESS,
    offload.PAGE_OUTCOME_RECEIVED: PageOutcome.RECEIVED,
}


_STAGES: Final = ("receive", "place", "encoder", "encode", "commit")


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
    assembly: bytes = b""
    """Of slices: which computation they are of."""

    def header(self, part: range, pages: Sequence[int]) -> offload.PutHeader:
        """The header of a Put of some pages of a part, ascending."""
        first = first_page_of(self.spec, self.token_ids, part, pages)
        size = self.spec.page_tokens
        return offload.PutHeader(
            spec=spec_to_wire(self.spec),
            token_ids=self.token_ids[first * size : (pages[-1] + 1) * size].tolist(),
            pages=pages,
            page_keys=[self.page_keys[page] for page in pages],
            durability=self.durability,
            page_inputs=checked_inputs(self.inputs[first:], pages[-1] + 1 - first),
            first_page=first,
            parent_key=self.page_keys[first - 1] if first else b"",
            assembly=b"" if self.spec.is_whole else self.assembly,
        )


class Offloading:
    """Sends the pages that the service lacks: a Match and a Put for each part of the sequence."""

    def __init__(
        self,
        transport: Transport,
        shift: Shift,
        offer: PageOffer,
        budget: Budget,
        match_most: float,
        clock: Clock,
    ) -> None:
        """
        Args:
            transport: the service.
            shift: reads the source.
            offer: the pages.
            budget: time for all of it.
            match_most: seconds for each question.
            clock: runs since the call began.
        """
        self._transport = transport
        self._shift = shift
        self._offer = offer
        self._budget = budget
        self._match_most = match_most
        self._clock = clock
        self._match_seconds = 0.0
        self._outcomes: list[PageOutcome] = []
        self._sent = self._stored = 0
        self._there = dict.fromkeys(_STAGES, 0.0)

    async def run(self) -> PutReport:
        """Asks which pages are missing and sends those, part after part.

        Raises:
            ShapeMismatch, NonFiniteCache: what the source gave cannot be offloaded.
            LexicoError: the service refused, or could not take the pages.
        """
        spec = self._offer.spec
        for part in parts(len(self._offer.page_keys), pages_of_put(spec)):
            try:
                outcomes = await self._part(part)
            except LexicoError as error:
                if not may_retry(error) or not await pause(self._budget):
                    raise
                outcomes = await self._part(part)  # from the match again: some may be stored
            self._outcomes += outcomes
        return PutReport(
            tokens=len(self._outcomes) * spec.page_tokens,
            pages=tuple(self._outcomes),
            bytes_sent=self._sent,
            bytes_stored=self._stored,
            seconds=PutSeconds(total=self._clock.total(), match=self._match_seconds, **self._there),
        )

    async def _part(self, part: range) -> list[PageOutcome]:
        offer, started = self._offer, self._clock.total()
        keys = offer.page_keys[part.start : part.stop]
        matched = await match_pages(
            self._transport,
            offer.spec,
            keys,
            self._budget,
            self._match_most,
            renew=True,
            first=part.start,
        )
        self._match_seconds += self._clock.total() - started
        outcomes = dict.fromkeys(part, PageOutcome.PRESENT)
        missing = [page for page, there in zip(part, matched.present, strict=True) if not there]
        if missing:
            upload = PageUpload(offer.spec, offer.header(part, missing), offer.source, self._shift)
            response = await self._put(upload, part)
            answered, stored = outcomes_of(response, missing)
            outcomes |= answered
            self._sent += upload.bytes_sent
            self._stored += stored
            for name in _STAGES:
                self._there[name] += getattr(response.seconds, name)
        return list(outcomes.values())

    async def _put(self, upload: PageUpload, part: range) -> offload.PutResponse:
        try:
            return await self._transport.put(upload.messages(), self._budget.left())
        except (Unsupported, PageKeyMismatch) as error:
            # Earlier releases refuse a spec of a slice, or make other keys of it.
            whole = self._offer.spec.is_whole
            if whole or not (type(error) is Unsupported or isinstance(error, PageKeyMismatch)):
                raise
            raise Unsupported(
                "the ingress puts no slices of a model together: it is of an earlier release, "
                "upgrade it, or run the model in one rank"
            ) from error
        except TokenCountMismatch as error:
            if not upload.in_parts:
                raise
            raise Unsupported(
                f"the service has the first {part.start} pages and does not take the others of so "
                "long a prompt: it is of an earlier release, upgrade it"
            ) from error


class PageUpload:
    """The messages of one Put, made as they are taken.

    One layer group is read in a worker thread while the one before it is sent: two are held.
    """

    def __init__(
        self,
        spec: CacheSpec,
        header: offload.PutHeader,
        source: PageSource,
        shift: Shift,
    ) -> None:
        self.bytes_sent = 0
        self.in_parts = header.first_page > 0
        """Whether a server of an earlier release would refuse the header."""
        self._spec = spec
        self._header = header
        self._source = source
        self._shift = shift

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
                made = await self._shift.result(running)
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
            await self._shift.finished(running)

    def _start(self, page: int, group: int, checksum: Checksum) -> asyncio.Future[list[bytes]]:
        return self._shift.start(self._read, page, group, checksum)

    def _read(self, page: int, group: int, checksum: Checksum) -> list[bytes]:
        """In the worker thread: one group after another, so that the checksum is in order."""
        with self._shift.access.using() as allowed:
            if not allowed:
                return []  # to nobody: the call has ended
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
