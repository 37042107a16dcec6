"""A gRPC server in the test's event loop: the in-memory service behind sockets, or a liar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio

from lexico_client import InMemoryTransport
from lexico_proto.errors import REASON_METADATA_KEY, LexicoError
from lexico_proto.v1 import dictionaries_pb2 as dictionaries
from lexico_proto.v1 import dictionaries_pb2_grpc, offload_pb2_grpc, reload_pb2_grpc
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload

_TIMEOUT = 30.0


async def refuse(context: Any, error: LexicoError, reason: str | None = None) -> NoReturn:
    """Ends a call as the service does."""
    code = next(code for code in grpc.StatusCode if code.value[0] == error.status)
    trailing = ((REASON_METADATA_KEY, reason or error.reason),)
    await context.abort(code, error.message, trailing)
    raise AssertionError("abort returned")


@dataclass
class Behaviour:
    """The service's store, and calls that answer otherwise than they should."""

    memory: InMemoryTransport = field(default_factory=InMemoryTransport)
    match: Callable[[reload.MatchRequest, Any], Awaitable[reload.MatchResponse]] | None = None
    get: Callable[[reload.GetRequest, Any], AsyncIterator[reload.GetResponse]] | None = None
    put: Callable[[Any, Any], Awaitable[offload.PutResponse]] | None = None
    fetch: Callable[[dictionaries.FetchRequest, Any], AsyncIterator[Any]] | None = None
    calls: list[str] = field(default_factory=list)
    """Names of the calls that came."""
    metadata: list[tuple[str, str]] = field(default_factory=list)
    """Metadata of the last call."""

    def note(self, call: str, context: Any) -> None:
        self.calls.append(call)
        self.metadata = [(str(k), str(v)) for k, v in context.invocation_metadata()]


class _Reload(reload_pb2_grpc.ReloadServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._b = behaviour

    async def Match(self, request: Any, context: Any) -> Any:
        self._b.note("match", context)
        try:
            if self._b.match is not None:
                return await self._b.match(request, context)
            return await self._b.memory.match(request, _TIMEOUT)
        except LexicoError as error:
            await refuse(context, error)

    async def Namespaces(self, request: Any, context: Any) -> Any:
        self._b.note("namespaces", context)
        return await self._b.memory.namespaces(request, _TIMEOUT)

    async def Get(self, request: Any, context: Any) -> Any:
        self._b.note("get", context)
        messages: AsyncIterator[Any] = self._b.memory.get(request, _TIMEOUT)
        if self._b.get is not None:
            messages = self._b.get(request, context)
        try:
            async for message in messages:
                yield message
        except LexicoError as error:
            await refuse(context, error)


class _Offload(offload_pb2_grpc.OffloadServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._b = behaviour

    async def Put(self, requests: Any, context: Any) -> Any:
        self._b.note("put", context)
        try:
            if self._b.put is not None:
                return await self._b.put(requests, context)
            return await self._b.memory.put(_serialised(requests), _TIMEOUT)
        except LexicoError as error:
            await refuse(context, error)


class _Dictionaries(dictionaries_pb2_grpc.DictionariesServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._b = behaviour

    async def Register(self, requests: Any, context: Any) -> Any:
        self._b.note("register", context)
        try:
            return await self._b.memory.register(_generator(requests), _TIMEOUT)
        except LexicoError as error:
            await refuse(context, error)

    async def Fetch(self, request: Any, context: Any) -> Any:
        self._b.note("fetch", context)
        messages: AsyncIterator[Any] = self._b.memory.fetch(request, _TIMEOUT)
        if self._b.fetch is not None:
            messages = self._b.fetch(request, context)
        try:
            async for message in messages:
                yield message
        except LexicoError as error:
            await refuse(context, error)

    async def List(self, request: Any, context: Any) -> Any:
        self._b.note("list", context)
        return await self._b.memory.list_dictionaries(_TIMEOUT)

    async def Publish(self, request: Any, context: Any) -> Any:
        self._b.note("publish", context)
        try:
            return await self._b.memory.publish(request, _TIMEOUT)
        except LexicoError as error:
            await refuse(context, error)

    async def Find(self, request: Any, context: Any) -> Any:
        self._b.note("find", context)
        return await self._b.memory.find(request, _TIMEOUT)


async def _generator(requests: Any) -> Any:
    async for request in requests:
        yield request


async def _serialised(requests: Any) -> Any:
    async for request in requests:
        yield request.SerializeToString()


def register(behaviour: Behaviour, server: grpc.aio.Server) -> None:
    """Has a server do as told."""
    reload_pb2_grpc.add_ReloadServicer_to_server(_Reload(behaviour), server)
    offload_pb2_grpc.add_OffloadServicer_to_server(_Offload(behaviour), server)
    dictionaries_pb2_grpc.add_DictionariesServicer_to_server(_Dictionaries(behaviour), server)


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[str]:
    """The address of a server on loopback, gone at the end."""
    limit = (1 << 20) + (64 << 10)
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        )
    )
    register(behaviour, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
