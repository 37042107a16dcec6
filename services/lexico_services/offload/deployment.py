"""The Serve application: Ingress, with a gRPC server of its own, calls Encoder by handle.

Whoever deploys it imports this module, and computes nothing: what an ingress needs beyond it, torch
with it, is imported by its replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ray import serve

from lexico_proto.logs import log_to_stderr
from lexico_proto.metrics import PROCESS
from lexico_proto.watched import look_again
from lexico_services import process
from lexico_services.auth import Tenants
from lexico_services.config import ListenConfig, OffloadConfig
from lexico_services.health import HealthPort
from lexico_services.policies import Policies
from lexico_services.security import Security
from lexico_services.server import GrpcServer
from lexico_services.telemetry.config import TelemetryConfig
from lexico_services.telemetry.gauges import watch_ingress
from lexico_services.telemetry.running import Telemetry
from lexico_worker.config import EncoderConfig
from lexico_worker.deployment import LEAVE_S, encoder_app
from lexico_worker.malloc import keep_freed_memory

_log = logging.getLogger(__name__)

APP_NAME = "lexico"
LOGGERS = ("lexico_services", "lexico_codec", "lexico_store", "lexico_proto")
"""What an ingress writes to its error file."""

INGRESS_CPUS = 0.1
"""Ray's CPU share of the ingress, for placement; it is no limit."""

DRAIN_LOOK_S = 0.5
"""Seconds between two looks at `offload.drain_file`."""


@dataclass(frozen=True)
class IngressConfig:
    """Settings of the offload ingress."""

    listen: ListenConfig
    offload: OffloadConfig
    security: Security | None = None
    """None for what `listen` says."""
    health_address: str | None = None
    """`HOST:PORT` for health alone; None where another process has it, which knows of the store."""
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    """What its process tells of itself."""


@dataclass(frozen=True)
class Placement:
    """Which nodes have an ingress."""

    resource: str
    """Ray resource that they have."""
    ingresses: int = 1
    """How many there are, each on a node of its own."""

    @classmethod
    def on(cls, address: str) -> Self:
        """One ingress, on the node with this IP address: Ray gives every node a resource of its
        name.
        """
        return cls(f"node:{address}")


class IngressReplica:
    """Runs the Offload server inside a Serve replica, on the node of its encoders.

    Serve does not see calls to our own server: draining is ours, through `drain` before the
    application is deleted and through `__del__` where Serve replaces the replica.
    """

    def __init__(self, encoders: Any, config: IngressConfig) -> None:
        from lexico_services.offload.encoder_pools import RayEncoders, near_first
        from lexico_services.offload.ingress import Ingress
        from lexico_services.offload.servicer import SERVICES, OffloadServicer

        keep_freed_memory()
        log_to_stderr(config.telemetry.log_level, config.telemetry.log_format, LOGGERS)
        self._telemetry = Telemetry(config.telemetry, "ingress")
        self._drain_s = config.listen.drain_s
        policies = Policies(config.listen.policy_file, PROCESS)
        self._ingress = Ingress(
            RayEncoders(near_first(encoders)), config.offload, policies=policies
        )
        watch_ingress(PROCESS, self._ingress)
        servicer = OffloadServicer(
            self._ingress, Tenants.of(config.listen), config.offload, policies=policies
        )
        self._server = GrpcServer(
            config.listen,
            servicer.add_to,
            SERVICES,
            config.security,
        )
        process.on_reload("files", look_again)
        self._health = HealthPort(config.health_address, ("offload",))
        loop = asyncio.get_running_loop()
        self._ready = loop.create_task(self._start())
        if config.offload.drain_file is not None:
            self._told = loop.create_task(self._drain_when_told(config.offload.drain_file))

    async def _start(self) -> None:
        await asyncio.to_thread(self._health.start)
        await self._server.start()
        self._health.turn("offload", True)

    async def _drain_when_told(self, file: Path) -> None:
        """Drains once the file is touched. What was touched before this process began was meant for
        another one.

        Serve is not told: it would put a new replica on a node that is about to go.
        """
        before = await asyncio.to_thread(_touched, file)
        while await asyncio.to_thread(_touched, file) in (before, None):
            await asyncio.sleep(DRAIN_LOOK_S)
        _log.warning("draining: %s was touched", file)
        await self.drain()

    async def check_health(self) -> None:
        """Raises where the server could not bind. Serve asks every two seconds: the loop is not
        stuck.
        """
        await asyncio.shield(self._ready)
        self._health.beat()

    async def port(self) -> int:
        """Port that the server listens on."""
        await asyncio.shield(self._ready)
        return self._server.port

    async def metrics_port(self) -> int | None:
        """Port that its metrics are on, if they are."""
        where = await asyncio.to_thread(self._telemetry.address)
        return None if where is None else where[1]

    async def usage(self) -> dict[str, int]:
        """Process id, bytes in flight and their peak, for benchmarks and tests."""
        budget = self._ingress.budget
        return {"pid": os.getpid(), "used": budget.used, "peak": budget.peak, "limit": budget.limit}

    async def read_again(self) -> None:
        """Reads tokens, certificates and policies again: calls what `on_reload` was given."""
        await asyncio.to_thread(process.reload)

    async def drain(self) -> None:
        """Stops taking calls, lets running ones end and pages in encoders be committed. All of them
        together have `drain_s`; then encoders are told to leave the rest.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_s
        self._health.drain()  # before anything closes
        await self._server.drain()
        await self._ingress.close(max(0.0, until - loop.time()))
        await asyncio.to_thread(self._telemetry.close)
        await asyncio.to_thread(self._health.close)

    async def __del__(self) -> None:
        await self.drain()


def _touched(file: Path) -> int | None:
    """When, in nanoseconds; None where it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def offload_app(ingress: IngressConfig, encoder: EncoderConfig, placement: Placement) -> Any:
    """The whole application, to be given to `serve.run_many`.

    One ingress a node (`max_replicas_per_node`): its port is fixed, and pages stay in the shared
    memory of the node that received them until an encoder fetches them.

    Args:
        ingress: settings of the ingress.
        encoder: settings of the encoders, which run on any node.
        placement: where ingresses run, and how many.
    """
    held = placement.ingresses * ingress.offload.max_encoding
    if held < encoder.max_replicas * encoder.ongoing_per_replica:
        _log.warning(
            "offload.max_encoding=%d lets %d pages to encoders, and %d encoders would take %d: "
            "some of them will never be started",
            ingress.offload.max_encoding,
            held,
            encoder.max_replicas,
            encoder.max_replicas * encoder.ongoing_per_replica,
        )
    deployment = serve.deployment(
        name="Ingress",
        num_replicas=placement.ingresses,
        max_replicas_per_node=1,
        # A sliver of the resource binds to its nodes, and leaves room for one that takes over.
        ray_actor_options={"num_cpus": INGRESS_CPUS, "resources": {placement.resource: 0.001}},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=ingress.listen.drain_s + 5,
        graceful_shutdown_wait_loop_s=LEAVE_S,
    )
    return deployment(IngressReplica).bind(encoder_app(encoder), ingress)
