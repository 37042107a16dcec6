"""The client that inference nodes use, on their event loop."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from lexico_client._coding_counts import counts_of
from lexico_client._crew import Access, Crew
from lexico_client._deadline import Budget, Clock
from lexico_client._describe import describe_servers
from lexico_client._dictionaries import DictionaryShelf
from lexico_client._endpoint import Endpoint
from lexico_client._explain import Explanation
from lexico_client._explaining import explain_prompt
from lexico_client._grpc import GrpcTransport
from lexico_client._ids import LATE, ids_of
from lexico_client._load import Target
from lexico_client._loading import Loading, checked_pages
from lexico_client._match import match_pages
from lexico_client._observer import Observer
from lexico_client._offload import Offloading, PageOffer, PageSource
from lexico_client._parts import keys_of
from lexico_client._results import Described, Loaded, LoadSeconds, Match, PutReport
from lexico_client._set_calls import SetCalls
from lexico_client._settings import Timeouts, cache_folder, check_seconds
from lexico_client._tls import Tls
from lexico_client._told import Told
from lexico_client._transport import Transport
from lexico_codec.inputs import PageDigests, checked_inputs
from lexico_codec.keys import TokenIds
from lexico_codec.slices import check_assembly
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Cancelled, ConfigurationError, InvalidInput, TokenCountMismatch
from lexico_proto.metrics import PROCESS, Metrics
from lexico_proto.request_id import request
from lexico_proto.v1 import offload_pb2 as offload_pb

Wait = Literal["committed", "received"]
"""When an offload answers: every page is in the store, or every byte is with the service."""

_DURABILITY: Final[dict[str, offload_pb.Durability]] = {
    "committed": offload_pb.DURABILITY_COMMITTED,
    "received": offload_pb.DURABILITY_RECEIVED,
}


class AsyncClient(SetCalls):
    """Shares the caches of one node. Use it as an async context manager, on one event loop; once
    that is closed, another may take its place.

    Sequences may have any length: calls go out in parts, within one deadline. It counts from when
    the call begins: token ids are converted and hashed within it.

    Caller's memory is read and written in worker threads, and not after the call has ended. A
    thread that is still in it at the deadline is left behind: the call ends, `Loaded.unfinished`
    says when the thread is out again, and what it gives is used by nobody. A call that is cancelled
    has no result to say so: it waits for its thread, up to a second beyond the deadline.

    Once closed, a load is a miss and other calls raise `Cancelled`, as do those that run then.

    In a forked child it works as if made there, unless the parent had gRPC channels open: those of
    any client of its that has made a call and is not closed. Then gRPC is not touched in the child:
    `load` is a miss and other calls raise `Unsupported`, at once. So it is on a second loop beside
    the first.
    """

    def __init__(
        self,
        *,
        reload: str | Endpoint | None = None,
        offload: str | Endpoint | None = None,
        token: str | None = None,
        dictionaries_dir: str | os.PathLike[str] | None = None,
        timeouts: Timeouts | None = None,
        threads: int = 2,
        transport: Transport | None = None,
        metrics: Metrics = PROCESS,
        tls: Tls | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Connects nothing yet.

        Args:
            reload: where Reload and Dictionaries are: `host:port`, or an `Endpoint`.
            offload: where Offload is; None for a node that only reloads.
            token: bearer token that names the tenant, for endpoints without one.
            dictionaries_dir: where dictionary sets are kept; by default in the user's cache folder.
            timeouts: seconds for each kind of call, where the call does not give its own.
            threads: loads and offloads whose memory is worked on at the same time.
            transport: in place of gRPC and its addresses, for tests.
            metrics: where calls, bytes and misses are counted: by default with all else that this
                process counts.
            tls: how the service is known and this node is to it, for endpoints that are plaintext;
                None for no encryption.
            observer: is told of calls, loads and offloads as they end.

        Raises:
            ConfigurationError: an address or number that cannot be used, a token or TLS in two
                places, or neither address nor transport.
        """
        self._timeouts = timeouts or Timeouts()
        if transport is None:
            if reload is None:
                raise ConfigurationError("reload=None: where are pages matched and loaded?")
            transport = GrpcTransport(
                reload,
                offload,
                token,
                metrics=metrics,
                tls=tls,
                probe_every=self._timeouts.probe,
                observer=observer,
            )
        elif not (reload is offload is token is None and tls is None):
            raise ConfigurationError("give addresses, token and TLS, or a transport, not both")
        if threads < 1:
            raise ConfigurationError(f"threads={threads}: at least 1")
        if dictionaries_dir is None:
            dictionaries_dir = cache_folder("dictionaries")
        self._told = Told(metrics, observer)
        self._counts = counts_of(metrics)
        self._looks = set()
        self._transport = transport
        self._crew = Crew(threads)
        self._closed = False
        self._shelf = DictionaryShelf(
            transport, Path(dictionaries_dir), self._crew, self._timeouts.dictionaries
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends calls that still run, closes channels and threads. May be called more than once."""
        self._closed = True
        self._crew.close()
        await self._end_looks()
        await self._shelf.close()
        await self._transport.close()
        await self._crew.ended()

    async def match(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        *,
        inputs: PageDigests = (),
        apart: bool = False,
        renew: bool = False,
        timeout: float | None = None,
    ) -> Match:
        """Asks which full pages of a sequence are stored.

        Args:
            spec: what the pages belong to.
            token_ids: the sequence from position 0.
            inputs: what reached the model beside token ids: a digest for each page that had such,
                see `input_digests`. Pages without stand for token ids alone.
            apart: each page is a sequence of its own, at position 0, and the result says of each
                whether it is stored: one call where there would be as many as pages.
            renew: the missing ones will be sent, so those that are there must not expire before.
            timeout: seconds, in place of `Timeouts.match`.

        Raises:
            TokenCountMismatch: `token_ids` is no flat sequence of token ids.
            InvalidInput: `inputs` holds what is no digest.
            LexicoError: the service could not answer.
        """
        budget = self._budget("match", timeout, self._timeouts.match)
        self._check_open()
        ids = await ids_of(token_ids, self._crew, budget)
        digests = checked_inputs(inputs, len(ids) // spec.page_tokens, spec.page_tokens)
        with request():
            async with budget.bound():
                keys = await keys_of(spec, ids, digests, apart=apart)
                return await match_pages(self._transport, spec, keys, budget, renew=renew)

    async def explain(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        *,
        inputs: PageDigests = (),
        against: CacheSpec | None = None,
        timeout: float | None = None,
    ) -> Explanation:
        """Why a prompt is found, or not: what its pages belong to, which of them are stored, and
        how what is stored differs.

        Args:
            spec: what the pages belong to.
            token_ids: the sequence from position 0.
            inputs: as for `match`.
            against: another spec, to name the parts in which it differs.
            timeout: seconds, in place of `Timeouts.match`.

        Raises:
            TokenCountMismatch, InvalidInput, LexicoError: as `match`.
        """
        budget = self._budget("explain", timeout, self._timeouts.match)
        self._check_open()
        ids = await ids_of(token_ids, self._crew, budget)
        digests = checked_inputs(inputs, len(ids) // spec.page_tokens, spec.page_tokens)
        async with budget.bound():
            return await explain_prompt(self._transport, spec, ids, digests, against, budget)

    async def offload(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        source: PageSource,
        *,
        inputs: PageDigests = (),
        pages: int | None = None,
        wait: Wait = "committed",
        assembly: bytes = b"",
        timeout: float | None = None,
    ) -> PutReport:
        """Sends the pages that the service lacks.

        A rank that holds a part of a model gives `spec.held_by(layers, heads)`, and sends slices.
        The service stores a page once the ranks of one assembly have sent all of it; until then a
        slice was received, and `wait` waits for those pages alone that this rank completed. All
        ranks must send to one ingress.

        Args:
            spec: what the pages belong to; of a slice, what the rank holds.
            token_ids: the sequence from position 0.
            source: gives the cache of one layer group of one page at a time, as a tensor or as the
                `CacheMemory` of all its layers and heads; called in a worker thread, perhaps twice
                for the same group. What it returns must not change until this call has ended.
            inputs: as for `match`.
            pages: leading pages that the source holds; by default every full page of the sequence.
            wait: "committed" for an answer when the pages are stored, "received" when they are
                received.
            assembly: of slices, the name of the computation that they come from: 16 to 64 bytes,
                drawn at random for each, and given to all of its ranks. Slices of two computations
                are never put together. Ignored for a whole model.
            timeout: seconds, in place of `Timeouts.offload`.

        Raises:
            TokenCountMismatch: `token_ids` is no flat sequence, or too short for `pages`.
            InvalidInput: `inputs` holds what is no digest, `wait` is none of the two, or slices
                have no assembly.
            ShapeMismatch, NonFiniteCache: what the source gave cannot be offloaded.
            UnknownDictionary: the spec's set is not registered: register it and call again.
            Unsupported: slices, and an ingress of an earlier release.
            LexicoError: the service refused, or could not take the pages.
        """
        if wait not in _DURABILITY:
            raise InvalidInput(f"wait={wait!r}: {' or '.join(_DURABILITY)}")
        budget, clock = self._budget("offload", timeout, self._timeouts.offload), Clock()
        try:
            ids = await ids_of(token_ids, self._crew, budget)
        except LATE:
            with self._told.offload(spec):
                raise
        check_assembly(spec, assembly)
        full = len(ids) // spec.page_tokens
        digests = checked_inputs(inputs, full, spec.page_tokens)
        if pages is not None and not 0 <= pages <= full:
            raise TokenCountMismatch(
                f"pages={pages}: {len(ids)} token ids make {full} pages of {spec.page_tokens}"
            )
        with self._told.offload(spec) as told:
            async with self._crew.shift(budget) as shift:
                async with budget.bound():
                    keys = await keys_of(spec, ids, digests)
                    durability = _DURABILITY[wait]
                    offer = PageOffer(
                        spec, ids, keys[:pages], source, durability, digests, assembly
                    )
                    report = await Offloading(
                        self._transport, shift, offer, budget, self._timeouts.match, clock
                    ).run()
            told(report)
        return report

    async def load(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        target: Target,
        *,
        inputs: PageDigests = (),
        pages: range | None = None,
        timeout: float | None = None,
    ) -> Loaded:
        """Brings as much of the sequence's prefix as the service can give.

        Whatever happens to the service, the network or the stored bytes makes the prefix shorter,
        down to a miss, and is named in the result; it is never raised.

        Args:
            spec: what the pages belong to.
            token_ids: the sequence from position 0; loads at most its full pages. Of a prompt give
                `spec.pages_of(n)` pages, n being `spec.reloadable_tokens` of it, and use the n
                leading tokens of what comes: the model computes the others.
            target: called once in a worker thread with the number of pages to come, 1 or more;
                gives a function `(page, group)` → the tensor to fill there,
                `spec.group_shape(group)` of the geometry's dtype, any strides, any device. From the
                first page on that was not loaded, their content is undefined. In place of a tensor
                it may give a `CacheMemory`: some layers and KV heads of the group, in an engine's
                own memory, paged or not; or a `CodesReceiver`, which gets the group's codes as they
                are stored, if the codec has codes; what it got of pages that were not loaded is to
                be dropped.
            inputs: as for `match`.
            pages: those to bring, which a `match` has found: it is not asked again, and the result
                counts from the first of them. By default what is stored from page 0 on.
            timeout: seconds, in place of `Timeouts.load`.

        Raises:
            TokenCountMismatch: `token_ids` is no flat sequence, or has no such `pages`.
            ShapeMismatch, InvalidInput: a tensor or memory of the target's does not fit the spec,
                or `inputs` holds what is no digest.
            Unsupported: a `CodesReceiver`, and a codec without codes; or a spec of a slice.
            Exception: whatever else the target, or a receiver of its, raised.
        """
        access = Access.of_call()
        return await self._counted_load(spec, token_ids, target, inputs, pages, timeout, access)

    async def _counted_load(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        target: Target,
        inputs: PageDigests,
        pages: range | None,
        timeout: float | None,
        access: Access,
    ) -> Loaded:
        """`load`, for a caller that may end the access before."""
        budget, clock = self._budget("load", timeout, self._timeouts.load), Clock()
        spec.check_whole()
        try:
            ids = await ids_of(token_ids, self._crew, budget)
        except LATE as error:
            with self._told.load(spec, 0) as told:
                loaded = Loaded(0, 0, 0, error, 0, LoadSeconds(total=clock.total()), access.end())
                told(loaded)
            return loaded
        full = len(ids) // spec.page_tokens
        digests = checked_inputs(inputs, full, spec.page_tokens)
        asked = full if pages is None else len(checked_pages(pages, full))
        loading = Loading(self._transport, self._crew, self._shelf, self._timeouts, budget, access)
        with self._told.load(spec, asked * spec.page_tokens) as told:
            loaded = await loading.run(spec, ids, digests, target, pages, clock)
            told(loaded)
        return loaded

    async def describe(self, *, timeout: float | None = None) -> Described:
        """What both servers are: release, and the formats that they read and write.

        Args:
            timeout: seconds, in place of `Timeouts.match`.

        Raises:
            LexicoError: a server could not answer.
        """
        budget = self._budget("describe", timeout, self._timeouts.match)
        async with budget.bound():
            return await describe_servers(self._transport, budget)

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("the client is closed")

    def _budget(self, what: str, timeout: float | None, usual: float) -> Budget:
        seconds = usual if timeout is None else check_seconds("timeout", timeout)
        return Budget(what, seconds, self._told.retries)
