"""Match, Get and Namespaces as RPCs: frames from the store to the wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Final

import grpc

from lexico_codec.frame import parse_runs
from lexico_codec.get_messages import miss_message
from lexico_proto import tracing
from lexico_proto.errors import DamagedFrame, InvalidInput, LexicoError, NewerFrame
from lexico_proto.limits import DIGEST_BYTES, MAX_GROUPS
from lexico_proto.metrics import (
    CALLS,
    CHECKSUM_FAILURES,
    MISS_REASONS,
    MISSES,
    PROCESS,
    SENT_BYTES,
    SENT_PAGES,
    TENANT_BYTES,
    Calls,
    Counter,
    Metrics,
)
from lexico_proto.v1 import reload_pb2 as pb
from lexico_services.admission import ByteBudget, Slots, ThreadCalls, in_time, write_to
from lexico_services.auth import Tenants
from lexico_services.config import ReloadConfig
from lexico_services.policies import Policies
from lexico_services.quotas import CallRates
from lexico_services.reload.frame_reader import Absence, Found, FrameBatch, FrameReader
from lexico_services.reload.frame_room import FrameRoom, Place
from lexico_services.reload.match_counts import MatchCounts
from lexico_services.reload.namespaces import stored_namespaces
from lexico_services.roles import OFFLOAD, RELOAD
from lexico_services.server import add_handlers
from lexico_services.status import translated
from lexico_store import PageStore
from lexico_store.lifetimes import MAX_PAGE
from lexico_store.room import Runs

_log = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Reload"].full_name


_MISS_REASONS: Final = {
    Absence.ABSENT: pb.MISS_REASON_ABSENT,
    Absence.DAMAGED: pb.MISS_REASON_DAMAGED,
    Absence.NEWER: pb.MISS_REASON_NEWER,
}

Write = Callable[[bytes], Awaitable[None]]
"""Sends one serialised GetResponse."""


class ReloadServicer:
    """Serves lexico_proto.v1.Reload. Stateless: any replica answers any call."""

    def __init__(
        self,
        store: PageStore,
        tenants: Tenants,
        config: ReloadConfig,
        threads: Executor,
        streams: Slots,
        calls: ThreadCalls,
        buffers: ByteBudget,
        metrics: Metrics = PROCESS,
        policies: Policies | None = None,
        rates: CallRates | None = None,
    ) -> None:
        """
        Args:
            store: where pages are.
            tenants: who is calling.
            config: bounds.
            threads: where store calls of streams block.
            streams: bound on Get streams.
            calls: where store calls of a Match block.
            buffers: bound on frames that are held.
            metrics: where calls, bytes and misses are counted.
            policies: what each tenant may have.
            rates: where its calls are counted, with those to the other services of the port.
        """
        self._store = store
        self._tenants = tenants
        self._policies = policies or Policies()
        self._rates = rates or CallRates(self._policies)
        self._config = config
        self._threads = threads
        self._streams = streams
        self._calls = calls
        self._buffers = buffers
        self._matches = Calls(metrics, CALLS, "match")
        self._gets = Calls(metrics, CALLS, "get")
        self._namespaces = Calls(metrics, CALLS, "namespaces")
        self._sent = metrics.counter(SENT_BYTES)
        self._sent_pages = metrics.counter(SENT_PAGES)
        self._metrics = metrics
        self._counts = MatchCounts(metrics)
        self._damaged = metrics.counter(CHECKSUM_FAILURES, "store")
        self._misses = {reason: metrics.counter(MISSES, reason) for reason in MISS_REASONS}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service, with frames that protobuf does not copy."""
        handlers = {
            "Match": grpc.unary_unary_rpc_method_handler(
                self.match,
                request_deserializer=pb.MatchRequest.FromString,
                response_serializer=pb.MatchResponse.SerializeToString,
            ),
            "Namespaces": grpc.unary_unary_rpc_method_handler(
                self.namespaces,
                request_deserializer=pb.NamespacesRequest.FromString,
                response_serializer=pb.NamespacesResponse.SerializeToString,
            ),
            "Get": grpc.unary_stream_rpc_method_handler(
                self.get, request_deserializer=pb.GetRequest.FromString
            ),
        }
        add_handlers(server, SERVICE, handlers)

    async def match(
        self,
        request: pb.MatchRequest,
        context: grpc.aio.ServicerContext[pb.MatchRequest, pb.MatchResponse],
    ) -> pb.MatchResponse:
        """Which pages are stored."""
        response = pb.MatchResponse()
        async with translated(context, self._matches):
            caller = self._tenants.admit(context, OFFLOAD, RELOAD)  # an offload asks first
            scope = caller.scope
            self._rates.count(scope)
            keys = self._checked(request.page_keys, request.first_page)
            looking = partial(
                self._store.match,
                scope,
                _namespace(request.namespace),
                keys,
                renew_s=self._ttl_s(scope) if request.renew else None,
                first=request.first_page,
            )
            if keys:
                with tracing.span("lexico.store.match", pages=len(keys)):
                    found = await self._calls.run(looking, self._config.match_timeout_s)
                present = found.present
                response.present.extend(present)
                response.leading = present.index(False) if False in present else len(present)
            self._counts.add(caller.tenant, request, response.leading)
        return response

    async def namespaces(
        self,
        request: pb.NamespacesRequest,
        context: grpc.aio.ServicerContext[pb.NamespacesRequest, pb.NamespacesResponse],
    ) -> pb.NamespacesResponse:
        """What the tenant has pages of, and why a page is absent."""
        async with translated(context, self._namespaces):
            scope = self._tenants.admit(context, OFFLOAD, RELOAD).scope
            self._rates.count(scope)
            if not _namespace(request.namespace):
                raise InvalidInput("Namespaces needs the namespace that is asked about")
            if request.page_key:
                self._checked([request.page_key], 0)
            asking = partial(stored_namespaces, self._store, scope, request)
            return await self._calls.run(asking, self._config.max_stream_s)
        raise AssertionError("translated() aborts the call")  # pragma: no cover

    async def get(
        self,
        request: pb.GetRequest,
        context: grpc.aio.ServicerContext[pb.GetRequest, bytes],
    ) -> None:
        """Frames of pages, group by group, until all are sent or the prefix ends.

        Writes by itself: where the caller does not read, a generator would be left standing in a
        `yield` that nothing here could end.
        """
        async with translated(context, self._gets):
            caller = self._tenants.admit(context, RELOAD)
            scope, sent = caller.scope, self._metrics.counter(TENANT_BYTES, caller.tenant, "sent")
            self._rates.count(scope)
            keys = self._checked(request.page_keys, request.first_page)
            if not keys or not 1 <= request.groups <= MAX_GROUPS:
                raise InvalidInput(f"Get needs page keys, and groups in 1..{MAX_GROUPS}")
            if len(set(keys)) != len(keys):
                raise InvalidInput("Get: a page key is there twice")
            namespace, first = _namespace(request.namespace), request.first_page
            with self._streams.held():
                pages = _Pages(scope, namespace, keys, first, request.groups, sent)
                sending = self._send(pages, partial(write_to, context))
                await in_time(sending, self._config.max_stream_s)

    async def _send(self, pages: _Pages, write: Write) -> None:
        """Reads one batch from the store while the one before it is sent."""
        keys, loop = pages.keys, asyncio.get_running_loop()
        look = partial(self._store.match, pages.scope, pages.namespace, ())
        scope = (await loop.run_in_executor(self._threads, look)).scope
        source = _SoundFrames(self._store, scope, keys, self._misses, self._damaged)
        reader = FrameReader(source, len(keys), pages.groups, self._buffers, self._threads)
        batch = ahead = await reader.start()
        try:
            while batch is not None:
                await batch.arrive()
                ahead = reader.start_if_spare()
                await self._write_batch(batch, reader, write, pages)
                batch.drop()
                batch = ahead = ahead or await reader.start()
        finally:
            for each in (batch, ahead):
                if each is not None:
                    each.drop()
        await self._touch(scope, keys[: reader.limit], self._ttl_s(pages.scope), pages.first)

    async def _write_batch(
        self, batch: FrameBatch, reader: FrameReader, write: Write, pages: _Pages
    ) -> None:
        """Frames of the batch, of pages before the end of the prefix, which may be here."""
        sent, last_group = pages.sent, pages.groups - 1
        for place, frame in zip(batch.places, batch.frames, strict=True):
            if place.page >= reader.limit:
                continue
            if isinstance(frame, Absence):
                reader.limit = place.page
                await write(miss_message(place.page, _MISS_REASONS[frame]))
                continue
            for message in frame.sealed():
                await write(message)
            self._sent.add(place.length)
            sent.add(place.length)
            self._sent_pages.add(int(place.group == last_group))

    def _ttl_s(self, scope: bytes) -> float:
        return self._policies.of(scope).page_ttl_s or self._config.page_ttl_s

    async def _touch(self, scope: bytes, keys: Sequence[bytes], ttl_s: float, first: int) -> None:
        """Renews the expiry of pages that were read; the frames are out, so a failure is only
        logged.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._store.touch, scope, keys, ttl_s, first)
        except LexicoError as error:
            _log.warning("touch failed reason=%s", error.reason)

    def _checked(self, keys: Sequence[bytes], first: int) -> list[bytes]:
        if first + len(keys) > MAX_PAGE:
            raise InvalidInput(f"page {first} of a sequence: none has over {MAX_PAGE}")
        if len(keys) > self._config.max_pages:
            raise InvalidInput(f"{len(keys)} pages in one call: at most {self._config.max_pages}")
        for key in keys:
            if len(key) != DIGEST_BYTES:
                raise InvalidInput(f"a page key has {DIGEST_BYTES} bytes, not {len(key)}")
        return list(keys)


@dataclass(frozen=True)
class _Pages:
    """What a Get asks for."""

    scope: bytes
    namespace: bytes
    keys: Sequence[bytes]
    first: int
    """Index of the first of them in their sequence."""
    groups: int
    sent: Counter
    """Of the tenant's bytes."""


def _namespace(given: bytes) -> bytes:
    if len(given) not in (0, DIGEST_BYTES):
        raise InvalidInput(f"a namespace has {DIGEST_BYTES} bytes, not {len(given)}")
    return given


class _SoundFrames:
    """The pages of one Get in the store."""

    def __init__(
        self,
        store: PageStore,
        scope: bytes,
        keys: Sequence[bytes],
        misses: Mapping[str, Counter],
        damaged: Counter,
    ) -> None:
        self._store = store
        self._scope = scope
        self._keys = keys
        self._misses = misses
        self._damaged = damaged

    def frame_bytes(self, groups: Sequence[int]) -> list[list[int]]:
        return self._store.frame_bytes(self._scope, self._keys, groups)

    def read(self, places: Sequence[Place], room: FrameRoom) -> list[Found]:
        """A page with a damaged frame, or that lacks one which it had, is removed, so that it is
        sent anew; a newer one is left to those that can read it. One that was committed anew since
        its length was asked for, and has another, is a miss: its bytes are not counted.
        """
        asked = [at for at, place in enumerate(places) if place.length]
        wanted = [(self._keys[places[at].page], places[at].group) for at in asked]
        with tracing.span("lexico.store.read", group=places[0].group, frames=len(asked)):
            read = self._store.read_frames(
                self._scope, wanted, lambda nth, length: room(asked[nth], length)
            )
        found: list[Found] = [Absence.ABSENT] * len(places)
        for at, frame in zip(asked, read, strict=True):
            runs = room.filled(at, frame)
            if runs is not None:
                key = self._keys[places[at].page]
                found[at] = _flaw(runs, key) or room.messages(at)
        damaged = self._keys_of(places, found, Absence.DAMAGED)
        unfit = [at for at, place in enumerate(places) if not place.length]
        broken = self._store.discard_broken(
            self._scope, [self._keys[places[at].page] for at in unfit]
        )
        for at in compress(unfit, broken):
            found[at] = Absence.DAMAGED
        for reason in Absence:
            self._note(
                reason,
                [place for place, each in zip(places, found, strict=True) if each is reason],
            )
        self._store.discard(self._scope, damaged)  # counted, even where the store refuses
        return found

    def _keys_of(
        self, places: Sequence[Place], found: Sequence[Found], reason: Absence
    ) -> list[bytes]:
        pages = {p.page for p, each in zip(places, found, strict=True) if each is reason}
        return [self._keys[page] for page in sorted(pages)]

    def _note(self, reason: Absence, places: Sequence[Place]) -> None:
        """Counts the pages that lack frames, each once."""
        pages = {place.page for place in places}
        self._misses[reason].add(len(pages))
        if not pages:
            return
        group = places[0].group
        if reason is Absence.DAMAGED:
            self._damaged.add(len(pages))
            _log.warning("damaged pages=%d group=%d: removed", len(pages), group)
        elif reason is Absence.NEWER:
            _log.warning("newer pages=%d group=%d: left alone, upgrade to read", len(pages), group)


def _flaw(runs: Runs, key: bytes) -> Absence | None:
    """Why a frame is none of this page's; None for a sound one. Whoever decodes it checks again,
    and more, and has to know its codec.
    """
    try:
        return None if parse_runs(runs).page_key == key else Absence.DAMAGED
    except DamagedFrame:
        return Absence.DAMAGED
    except NewerFrame:
        return Absence.NEWER
