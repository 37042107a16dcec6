"""The reload process: Reload, Dictionaries, Admin and Operations over one store, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grpc

from lexico_proto.metrics import PROCESS, Metrics
from lexico_proto.v1 import (
    admin_pb2_grpc,
    dictionaries_pb2_grpc,
    operations_pb2_grpc,
    versions_pb2_grpc,
)
from lexico_services import status_servicer, versions_servicer
from lexico_services.admission import ByteBudget, Slots, ThreadCalls
from lexico_services.auth import Tenants
from lexico_services.config import ListenConfig, ReloadConfig
from lexico_services.context_threads import ContextThreads
from lexico_services.policies import Policies
from lexico_services.quotas import CallRates
from lexico_services.reload import admin_servicer, dictionaries_servicer
from lexico_services.reload import servicer as reload_servicer
from lexico_services.security import Security
from lexico_services.server import GrpcServer
from lexico_services.telemetry.gauges import watch_reload
from lexico_store import PageStore

_log = logging.getLogger(__name__)


class ReloadServer:
    """Serves Reload, Dictionaries, Admin, Operations and Versions from a store, which stays the
    caller's.
    """

    def __init__(
        self,
        store: PageStore,
        listen: ListenConfig,
        config: ReloadConfig,
        security: Security | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
        metrics: Metrics = PROCESS,
    ) -> None:
        """
        Args:
            store: where pages and sets are.
            listen: where to listen, and who may come in.
            config: bounds.
            security: binds the port; None for what `listen` says.
            interceptors: as `GrpcServer`.
            metrics: where calls, bytes and misses are counted.
        """
        tenants = Tenants.of(listen, metrics)
        self._threads = ContextThreads(config.store_threads, thread_name_prefix="store")
        streams = Slots(config.max_streams, "streams")
        calls = ThreadCalls(self._threads, config.max_calls)
        self.buffers = ByteBudget(config.max_buffered_bytes)
        watch_reload(metrics, store, streams, calls, self.buffers)
        policies = Policies(listen.policy_file, metrics)
        parts = (store, tenants, config, self._threads, streams, calls, self.buffers, metrics)
        rates = CallRates(policies)
        self._reload = reload_servicer.ReloadServicer(*parts, policies=policies, rates=rates)
        self._dictionaries = dictionaries_servicer.DictionariesServicer(
            *parts, rates=rates, policies=policies
        )
        self._admin = admin_servicer.AdminServicer(store, tenants, policies, config, calls, metrics)
        self._versions = versions_servicer.VersionsServicer(tenants, metrics)
        self._operations = status_servicer.StatusServicer("reload-server", tenants, metrics)
        self._server = GrpcServer(
            listen,
            self._add_to,
            (
                reload_servicer.SERVICE,
                dictionaries_servicer.SERVICE,
                admin_servicer.SERVICE,
                versions_servicer.SERVICE,
                status_servicer.SERVICE,
            ),
            security,
            interceptors,
        )

    @property
    def port(self) -> int:
        """Port taken, once started."""
        return self._server.port

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            ConfigurationError: the address cannot be bound or secured.
        """
        await self._server.start()

    async def drain(self) -> None:
        """Lets running calls end. Idempotent."""
        await self._server.drain()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _add_to(self, server: grpc.aio.Server) -> None:
        self._reload.add_to(server)
        dictionaries_pb2_grpc.add_DictionariesServicer_to_server(self._dictionaries, server)
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, server)
        versions_pb2_grpc.add_VersionsServicer_to_server(self._versions, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self._operations, server)
