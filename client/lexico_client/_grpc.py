"""The transport over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio

from lexico_client._channels import Channels
from lexico_client._circuit import HEALTH, Circuit
from lexico_client._endpoint import Endpoint, endpoint_of
from lexico_client._errors import translated
from lexico_client._observer import Observer
from lexico_client._reading import read_message
from lexico_client._settings import Timeouts
from lexico_client._tls import Tls
from lexico_client._told import ToldCalls
from lexico_client._transport import Server, check_size
from lexico_client._upload_end import UploadEnd
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import CircuitOpen, ConfigurationError
from lexico_proto.metrics import PROCESS, Metrics
from lexico_proto.v1 import dictionaries_pb2 as dictionaries
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from lexico_proto.v1 import versions_pb2 as versions
from lexico_proto.v1.dictionaries_pb2_grpc import DictionariesStub
from lexico_proto.v1.reload_pb2_grpc import ReloadStub
from lexico_proto.v1.versions_pb2_grpc import VersionsStub

_OFFLOAD: Final = offload.DESCRIPTOR.services_by_name["Offload"]
_PUT: Final = f"/{_OFFLOAD.full_name}/{_OFFLOAD.methods_by_name['Put'].name}"
SILENT_S: Final = 1.0
"""Seconds without a message of a stream, after which its end by us counts as a silence."""
_EOF: Final = vars(grpc.aio)["EOF"]  # grpc-stubs does not know it


class GrpcTransport:
    """The service over gRPC; connects when first used. See `Channels` for loops and forks."""

    def __init__(
        self,
        reload: str | Endpoint,
        offload: str | Endpoint | None = None,
        token: str | None = None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        metrics: Metrics = PROCESS,
        tls: Tls | None = None,
        probe_every: float = Timeouts.probe,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            reload: where Reload and Dictionaries are: `host:port`, or an endpoint.
            offload: where Offload is; None for a node that only reloads.
            token: bearer token that names the tenant, for endpoints without one.
            interceptors: gRPC's own; the first one is the outermost. gRPC uses an object for one
                kind of call alone: unary, server-stream (Get, Fetch) or client-stream (Put,
                Register). What one raises of its own leaves the call as it is.
            metrics: where calls are counted.
            tls: for endpoints that are plaintext.
            probe_every: see `Timeouts.probe`.
            observer: is told of each call.

        Raises:
            ConfigurationError: an address or interceptor that cannot be used, or a token or TLS in
                two places.
        """
        for each in interceptors:
            if not isinstance(each, grpc.aio.ClientInterceptor):
                raise ConfigurationError(f"{type(each).__name__} is no interceptor of grpc.aio")
        self._reload = endpoint_of("reload", reload, token, tls)
        if offload is not None:
            offload = endpoint_of("offload", offload, token, tls)
        self._offload = offload
        self._channels = Channels(interceptors)
        self._circuits = {
            endpoint: Circuit(f"the {server} server", probe_every, partial(self._check, endpoint))
            for server, endpoint in (("offload", self._offload), ("reload", self._reload))
            if endpoint is not None
        }
        self._told = ToldCalls(metrics, observer)
        renew_in_children(self)

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        """Reload.Match."""
        check_size(request, "match")
        stub = self._reload_stub()
        matched: reload.MatchResponse = await self._unary("match", stub.Match, request, timeout)
        return matched

    async def namespaces(
        self, request: reload.NamespacesRequest, timeout: float
    ) -> reload.NamespacesResponse:
        """Reload.Namespaces."""
        check_size(request, "namespaces")
        asking = self._reload_stub().Namespaces
        answer: reload.NamespacesResponse = await self._unary(
            "namespaces", asking, request, timeout
        )
        return answer

    def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        """Reload.Get."""
        check_size(request, "get")
        return self._stream("get", self._reload_stub().Get, request, timeout)

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        """Offload.Put."""
        endpoint = self._endpoint("offload")
        # Not the generated stub: it takes messages, and would copy each of them twice.
        channel = self._channels.to(endpoint)
        put = channel.stream_unary(_PUT, None, offload.PutResponse.FromString)
        answer: offload.PutResponse = await self._upload("put", put, messages, timeout, endpoint)
        return answer

    async def register(
        self, messages: AsyncGenerator[dictionaries.RegisterRequest, None], timeout: float
    ) -> dictionaries.RegisterResponse:
        """Dictionaries.Register."""
        register = self._dictionaries_stub().Register
        answer: dictionaries.RegisterResponse = await self._upload(
            "register", register, messages, timeout, self._reload
        )
        return answer

    def fetch(
        self, request: dictionaries.FetchRequest, timeout: float
    ) -> AsyncGenerator[dictionaries.FetchResponse, None]:
        """Dictionaries.Fetch."""
        return self._stream("fetch", self._dictionaries_stub().Fetch, request, timeout)

    async def list_dictionaries(self, timeout: float) -> dictionaries.ListResponse:
        """Dictionaries.List."""
        request = dictionaries.ListRequest()
        listed: dictionaries.ListResponse = await self._unary(
            "list", self._dictionaries_stub().List, request, timeout
        )
        return listed

    async def publish(
        self, request: dictionaries.PublishRequest, timeout: float
    ) -> dictionaries.PublishResponse:
        """Dictionaries.Publish."""
        published: dictionaries.PublishResponse = await self._unary(
            "publish", self._dictionaries_stub().Publish, request, timeout
        )
        return published

    async def find(
        self, request: dictionaries.FindRequest, timeout: float
    ) -> dictionaries.FindResponse:
        """Dictionaries.Find."""
        found: dictionaries.FindResponse = await self._unary(
            "find", self._dictionaries_stub().Find, request, timeout
        )
        return found

    async def describe(
        self, server: Server, request: versions.DescribeRequest, timeout: float
    ) -> versions.DescribeResponse:
        """Versions.Describe."""
        endpoint = self._endpoint(server)
        stub: Any = VersionsStub(self._channels.to(endpoint))
        described: versions.DescribeResponse = await self._unary(
            "describe", stub.Describe, request, timeout, endpoint
        )
        return described

    async def close(self) -> None:
        """Closes the channels."""
        for circuit in self._circuits.values():
            await circuit.close()
        await self._channels.close()

    def after_fork(self) -> None:
        """What was silent for the parent need not be so for the child."""
        for circuit in self._circuits.values():
            circuit.after_fork()

    async def _check(self, endpoint: Endpoint, timeout: float) -> object:
        """Standard health of a server, which asks for no token."""
        check = self._channels.to(endpoint).unary_unary(HEALTH, None, None)
        answer: object = await check(b"", timeout=timeout)
        return answer

    def _endpoint(self, server: Server) -> Endpoint:
        if server == "reload":
            return self._reload
        if self._offload is None:
            raise ConfigurationError("this client has no offload address: it can only reload")
        return self._offload

    def _reload_stub(self) -> Any:
        return ReloadStub(self._channels.to(self._reload))

    def _dictionaries_stub(self) -> Any:
        return DictionariesStub(self._channels.to(self._reload))

    async def _unary(
        self,
        name: str,
        method: Callable[..., Any],
        request: object,
        timeout: float,
        endpoint: Endpoint | None = None,
    ) -> Any:
        endpoint = endpoint or self._reload
        circuit = self._circuits[endpoint]
        with self._told.call(name) as told:
            await circuit.enter()
            metadata = (*endpoint.metadata, *told)
            with translated(name), circuit.listening(timeout):
                return await method(request, timeout=timeout, metadata=metadata)

    async def _stream(
        self, name: str, method: Callable[..., Any], request: object, timeout: float
    ) -> AsyncGenerator[Any, None]:
        circuit = self._circuits[self._reload]
        with self._told.call(name) as told:
            await circuit.enter()
            metadata = (*self._reload.metadata, *told)
            call = method(request, timeout=timeout, metadata=metadata)
            try:
                while True:
                    with translated(name), circuit.listening(min(timeout, SILENT_S)):
                        message = await read_message(call)
                    if message is _EOF:
                        return
                    yield message
            finally:
                call.cancel()  # nothing where it has ended

    async def _upload(
        self,
        name: str,
        method: Callable[..., Any],
        messages: AsyncGenerator[Any, None],
        timeout: float,
        endpoint: Endpoint,
    ) -> Any:
        circuit = self._circuits[endpoint]
        with self._told.call(name) as told:
            try:
                await circuit.enter()
            except CircuitOpen:
                await messages.aclose()
                raise
            metadata = (*endpoint.metadata, *told)
            with circuit.listening(timeout):
                return await self._write_all(name, method, messages, timeout, metadata)

    async def _write_all(
        self,
        name: str,
        method: Callable[..., Any],
        messages: AsyncGenerator[Any, None],
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> Any:
        # Written here and not by gRPC's own request iterator, which swallows what the iterator
        # raises.
        call = method(timeout=timeout, metadata=metadata)
        end = UploadEnd(call)
        try:
            async with aclosing(messages):
                if await self._write(name, call, messages):
                    # As a failed write: the call itself knows why.
                    with translated(name), suppress(grpc.aio.BaseError):
                        await call.done_writing()
            with translated(name):
                return await end.answer()
        finally:
            call.cancel()

    async def _write(self, name: str, call: Any, messages: AsyncIterable[Any]) -> bool:
        """Sends every message; False where the service ended the call before that."""
        async for message in messages:
            check_size(message, name)
            try:
                await call.write(message)
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                return False  # the call itself knows why; what a failed write says is not it
        return True
