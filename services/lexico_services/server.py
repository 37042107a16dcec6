"""Lifecycle of a gRPC server: options, health, reflection, start and drain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from lexico_proto.errors import ConfigurationError
from lexico_proto.installed import check_grpcio
from lexico_proto.limits import MESSAGE_BYTES, PIECE_BYTES
from lexico_services.config import ListenConfig
from lexico_services.malformed import MalformedRequests
from lexico_services.security import Security, security_of

check_grpcio(grpc.__version__)

_log = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # HTTP/2 frames of 16 KiB, the default, cost a tenth of the time that receiving takes.
    ("grpc.http2.max_frame_size", PIECE_BYTES),
    ("grpc.so_reuseport", 0),  # else a second server would silently share the port
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),  # a peer that vanished is noticed, its calls are ended
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # also where its stream stands still
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


def add_handlers(
    server: grpc.aio.Server, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
) -> None:
    """Serves the methods of a service by handlers of our own, as generated code does."""
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


class GrpcServer:
    """A grpc.aio server with standard health and reflection."""

    def __init__(
        self,
        listen: ListenConfig,
        register: Callable[[grpc.aio.Server], None],
        services: Sequence[str],
        security: Security | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    ) -> None:
        """
        Args:
            listen: where to listen.
            register: adds the servicers.
            services: full names of the services, for health and reflection.
            security: binds the port; None for what `listen` says.
            interceptors: see every call, health and reflection too; the first one is the outermost.
        """
        self._listen = listen
        self._register = register
        self._services = services
        self._security = security or security_of(listen.tls)
        self._interceptors = interceptors
        self._server: grpc.aio.Server | None = None
        self._health: Any = None
        self.port = 0

    async def start(self) -> None:
        """Binds and serves; `port` is then the port taken.

        Raises:
            ConfigurationError: the address is taken or cannot be bound or secured.
        """
        server = grpc.aio.server(
            options=(*_OPTIONS, *_aged(self._listen.connection_age_s)),
            interceptors=(*self._interceptors, MalformedRequests()),
        )
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._register(server)
        names = (*self._services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        try:
            self.port = self._security.bind(server, self._listen.target)
        except RuntimeError as error:
            raise ConfigurationError(f"cannot listen on {self._listen.target}: {error}") from error
        await server.start()
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        _log.info("listening=%s port=%d", self._listen.host, self.port)

    async def drain(self) -> None:
        """Turns not serving, refuses new calls, lets running ones end in `drain_s`. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        await server.stop(self._listen.drain_s)
        _log.info("drained port=%d", self.port)


def _aged(age_s: float) -> Sequence[tuple[str, int]]:
    """The option that ends connections. There is no grace beside it: each call has bounds of its
    own, and none of them is cut off because its connection is old.
    """
    return (("grpc.max_connection_age_ms", int(age_s * 1000)),) if age_s else ()
