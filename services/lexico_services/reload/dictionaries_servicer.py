"""Dictionary sets as RPCs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc

from lexico_codec.sets.shipped import builtin_bytes, builtin_digests
from lexico_proto.errors import (
    Busy,
    DictionaryMismatch,
    InvalidInput,
    LexicoError,
    StreamTooLong,
    StreamTruncated,
    UnknownDictionary,
    Unsupported,
)
from lexico_proto.limits import DIGEST_BYTES, PIECE_BYTES
from lexico_proto.metrics import CALLS, PROCESS, SET_SEARCHES, SETS_REFUSED, Calls, Metrics
from lexico_proto.v1 import dictionaries_pb2 as pb
from lexico_proto.v1 import dictionaries_pb2_grpc as pb_grpc
from lexico_services.admission import ByteBudget, Slots, ThreadCalls, in_time, to_the_end, write_to
from lexico_services.auth import Tenants
from lexico_services.config import ReloadConfig
from lexico_services.policies import Policies
from lexico_services.quotas import CallRates
from lexico_services.reload.publishing import Publishing, checked_models
from lexico_services.roles import ADMIN, OFFLOAD, OPERATOR, RELOAD
from lexico_services.status import translated
from lexico_store import PageStore
from lexico_store.scopes import SHARED_SCOPE

if TYPE_CHECKING:
    from lexico_codec.sets.dictionary import DictionarySet

_log = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Dictionaries"].full_name


def register_builtin_sets(store: PageStore) -> None:
    """Makes the sets that ship with the package known to every tenant, again where one is lost.

    A listing alone proves nothing: the bytes may be gone or damaged behind it.

    Raises:
        LexicoError: the store's.
    """
    for digest, name in builtin_digests().items():
        if _stored(store, SHARED_SCOPE, digest) is None:
            store.put_dictionary(SHARED_SCOPE, digest, builtin_bytes(name))


class DictionariesServicer(pb_grpc.DictionariesServicer):
    """Serves lexico_proto.v1.Dictionaries: a tenant sees its own sets and the operator's."""

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
        rates: CallRates | None = None,
        policies: Policies | None = None,
    ) -> None:
        """
        Args:
            store: where sets are.
            tenants: who is calling.
            config: bounds.
            threads: where store calls of streams block.
            streams: bound on Register and Fetch streams.
            calls: where store calls of a List block.
            buffers: bound on sets that are held.
            metrics: where calls are counted.
            rates: what each tenant may call, with the other services of the port.
            policies: how long each tenant's pages live.
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
        self._registers = Calls(metrics, CALLS, "register")
        self._fetches = Calls(metrics, CALLS, "fetch")
        self._lists = Calls(metrics, CALLS, "list")
        self._publishes = Calls(metrics, CALLS, "publish")
        self._finds = Calls(metrics, CALLS, "find")
        self._found = metrics.counter(SET_SEARCHES, "found")
        self._missing = metrics.counter(SET_SEARCHES, "none")
        self._publishing = Publishing(store, self._find, self._put)
        self._metrics = metrics
        self._infos: dict[tuple[bytes, bytes], pb.DictionaryInfo] = {}
        self._sizes: dict[tuple[bytes, bytes], int] = {}
        # One at a time: so the bounds of a tenant hold, and one set is in the making at most.
        self._registering = asyncio.Lock()

    async def Register(
        self,
        request_iterator: AsyncIterator[pb.RegisterRequest],
        context: grpc.aio.ServicerContext[pb.RegisterRequest, pb.RegisterResponse],
    ) -> pb.RegisterResponse:
        """Takes a set, once it has proved to be the one that its digest names."""
        added = False
        async with translated(context, self._registers):
            scope = self._tenants.admit(context, OFFLOAD).scope
            self._rates.count(scope)
            with self._streams.held():
                taking = self._take(scope, request_iterator)
                try:
                    added = await in_time(taking, self._config.max_stream_s)
                except (InvalidInput, DictionaryMismatch, Busy, Unsupported) as error:
                    self._metrics.counter(SETS_REFUSED, error.reason).add()
                    raise
        return pb.RegisterResponse(added=added)

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse],
    ) -> None:
        """Sends a set in pieces. Writes by itself, as Get does and for the same reason."""
        async with translated(context, self._fetches):
            scope = self._tenants.admit(context, OFFLOAD, RELOAD).scope
            self._rates.count(scope)
            digest = _checked(request.digest)
            with self._streams.held():
                sending = self._send(scope, digest, partial(write_to, context))
                await in_time(sending, self._config.max_stream_s)

    async def List(
        self,
        request: pb.ListRequest,
        context: grpc.aio.ServicerContext[pb.ListRequest, pb.ListResponse],
    ) -> pb.ListResponse:
        """Names the sets that the caller may use."""
        response = pb.ListResponse()
        async with translated(context, self._lists):
            scope = self._tenants.admit(context, OFFLOAD, RELOAD).scope
            self._rates.count(scope)
            # The first List of a tenant reads its sets: it has a stream's time.
            infos = await self._calls.run(lambda: self._list(scope), self._config.max_stream_s)
            response.dictionaries.extend(infos)
        return response

    async def Publish(
        self,
        request: pb.PublishRequest,
        context: grpc.aio.ServicerContext[pb.PublishRequest, pb.PublishResponse],
    ) -> pb.PublishResponse:
        """Says which set nodes of a model take, or takes that back."""
        response = pb.PublishResponse()
        async with translated(context, self._publishes):
            role = OPERATOR if request.shared else ADMIN
            scope = self._tenants.admit(context, role).scope
            self._rates.count(scope)
            models = checked_models(request.models)
            digest = _checked(request.digest) if request.digest else None
            work = partial(self._publishing.publish, scope, models, digest, shared=request.shared)
            async with self._registering:
                codecs = await self._calls.run(work, self._config.max_stream_s)
            response.codecs.extend(codecs)
        return response

    async def Find(
        self,
        request: pb.FindRequest,
        context: grpc.aio.ServicerContext[pb.FindRequest, pb.FindResponse],
    ) -> pb.FindResponse:
        """Which set is published for the caller's model, if one is."""
        response = pb.FindResponse()
        async with translated(context, self._finds):
            scope = self._tenants.admit(context, OFFLOAD, RELOAD).scope
            self._rates.count(scope)
            models, codec = checked_models(request.models), request.codec
            work = partial(self._publishing.find, scope, models, codec)
            response = await self._calls.run(work, self._config.match_timeout_s)
            (self._found if response.digest else self._missing).add()
            response.page_ttl_s = self._policies.of(scope).page_ttl_s or self._config.page_ttl_s
        return response

    async def _send(
        self, scope: bytes, digest: bytes, write: Callable[[pb.FetchResponse], Awaitable[None]]
    ) -> None:
        held = self._config.max_dictionary_bytes  # nobody knows the length before it is read
        await self._buffers.wait(held, 1)
        try:
            data = await to_the_end(self._threads, lambda: self._find(scope, digest))
            if data is None:
                raise UnknownDictionary(
                    f"dictionary set {digest.hex()[:16]} is not registered: register it first"
                )
            surplus, held = held - len(data), len(data)
            self._buffers.give_back(surplus)
            for at in range(0, len(data), PIECE_BYTES):
                piece = data[at : at + PIECE_BYTES]
                await write(pb.FetchResponse(artefact_bytes=len(data), data=piece))
        finally:
            self._buffers.give_back(held)

    async def _take(self, scope: bytes, requests: AsyncIterator[pb.RegisterRequest]) -> bool:
        digest, size = await self._announced(requests)
        data = bytearray()
        try:
            await self._receive(data, requests, size)
            artefact = bytes(data)
            async with self._registering:
                return await to_the_end(
                    self._threads, lambda: self._register(scope, digest, artefact)
                )
        finally:
            self._buffers.give_back(len(data))

    async def _announced(self, requests: AsyncIterator[pb.RegisterRequest]) -> tuple[bytes, int]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInput("a Register begins with its header")
        digest, size = _checked(first.header.digest), first.header.artefact_bytes
        if not 0 < size <= self._config.max_dictionary_bytes:
            raise InvalidInput(
                f"a set of {size} bytes: outside 1..{self._config.max_dictionary_bytes}"
            )
        return digest, size

    async def _receive(
        self, data: bytearray, requests: AsyncIterator[pb.RegisterRequest], size: int
    ) -> None:
        """Appends what comes; every byte of `data` is taken from the budget."""
        async for request in requests:
            if request.WhichOneof("part") != "data":
                raise InvalidInput("after the header a Register carries data alone")
            if len(data) + len(request.data) > size:
                raise StreamTooLong(f"the set is longer than the {size} bytes of its header")
            if request.data:
                self._buffers.take(len(request.data), 1)
                data += request.data
        if len(data) < size:
            raise StreamTruncated(f"the set ended after {len(data)} of {size} bytes")

    def _register(self, scope: bytes, digest: bytes, data: bytes) -> bool:
        if _digest(data) != digest:
            raise InvalidInput("the set's bytes do not have the digest of its header")
        _read(data)  # refuses what no codec could use
        if self._find(scope, digest) is not None:
            return False
        self._put(scope, digest, data)
        return True

    def _put(self, scope: bytes, digest: bytes, data: bytes) -> None:
        """Within the bounds of a tenant; what ships with the package does not count."""
        there = self._store.list_dictionaries(scope)
        others = [d for d in there if d != digest and d not in builtin_digests()]
        if len(others) >= self._config.max_dictionaries:
            raise Busy(f"{self._config.max_dictionaries} sets are registered: no room for more")
        most = self._config.max_dictionary_bytes_per_tenant
        if sum(self._size(scope, other) for other in others) + len(data) > most:
            raise Busy(f"the registered sets would have over {most} bytes: no room for more")
        self._store.put_dictionary(scope, digest, data)

    def _find(self, scope: bytes, digest: bytes) -> bytes | None:
        for owner in (scope, SHARED_SCOPE):
            data = _stored(self._store, owner, digest)
            if data is not None:
                return data
        return self._restored(digest)

    def _restored(self, digest: bytes) -> bytes | None:
        """A set of the package that the store has lost; it is put back on the way."""
        name = builtin_digests().get(digest)
        if name is None:
            return None
        data = builtin_bytes(name)
        try:
            self._store.put_dictionary(SHARED_SCOPE, digest, data)
        except LexicoError as error:  # the caller can be served all the same
            _log.warning("set=%s not put back reason=%s", name, error.reason)
        return data

    def _size(self, scope: bytes, digest: bytes) -> int:
        """Bytes of a registered set, as they are in the store. Digests name bytes: kept."""
        if (scope, digest) not in self._sizes:
            data = self._store.get_dictionary(scope, digest)
            if data is None:
                return 0
            self._sizes[scope, digest] = len(data)
        return self._sizes[scope, digest]

    def _list(self, scope: bytes) -> list[pb.DictionaryInfo]:
        found: list[pb.DictionaryInfo] = []
        for owner in (SHARED_SCOPE, scope):
            for digest in self._store.list_dictionaries(owner):
                if (owner, digest) not in self._infos:
                    data = _stored(self._store, owner, digest)
                    if data is None:
                        continue
                    self._infos[owner, digest] = _info(digest, data, owner == SHARED_SCOPE)
                found.append(self._infos[owner, digest])
        return found


def _stored(store: PageStore, owner: bytes, digest: bytes) -> bytes | None:
    """The set as it was registered; None where it is not there, or its bytes are others."""
    data = store.get_dictionary(owner, digest)
    if data is None or _digest(data) == digest:
        return data
    _log.warning("damaged set=%s: as good as absent", digest.hex()[:16])
    return None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _read(data: bytes) -> DictionarySet:
    # Here and not above: torch is most of this server's start and memory, and what it serves beside
    # Register and List needs none of it.
    from lexico_codec.sets.dictionary import DictionarySet

    return DictionarySet.load(data)


def _checked(digest: bytes) -> bytes:
    if len(digest) != DIGEST_BYTES:
        raise InvalidInput(f"a dictionary digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return digest


def _info(digest: bytes, data: bytes, shared: bool) -> pb.DictionaryInfo:
    dictionary = _read(data)
    return pb.DictionaryInfo(
        digest=digest,
        artefact_bytes=len(data),
        model=dictionary.info.model,
        layers=dictionary.layers,
        kv_heads=dictionary.info.kv_heads,
        head_dim=dictionary.head_dim,
        shared=shared,
    )
