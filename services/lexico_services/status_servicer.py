"""Status as an RPC: what this process is doing, to those who may know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from lexico_codec.formats import own_formats
from lexico_proto.metrics import CALLS, PROCESS, Calls, Metrics
from lexico_proto.v1 import operations_pb2 as pb
from lexico_proto.v1 import operations_pb2_grpc
from lexico_services.auth import Tenants
from lexico_services.roles import ADMIN, OPERATOR
from lexico_services.status import translated
from lexico_services.telemetry.process_status import ProcessStatus

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Operations"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class StatusServicer(operations_pb2_grpc.OperationsServicer):
    """Serves lexico_proto.v1.Operations. An operator sees the process; an admin of a tenant sees
    what is that tenant's, and nothing of which others have a part.
    """

    def __init__(
        self,
        part: str,
        tenants: Tenants,
        metrics: Metrics = PROCESS,
        encoders: Callable[[], Awaitable[int | None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            part: ingress or reload-server.
            tenants: who is calling.
            metrics: what the process counts.
            encoders: how many there are, of an ingress.
            clock: seconds; tests inject theirs.
        """
        self._part = part
        self._tenants = tenants
        self._metrics = metrics
        self._encoders = encoders
        self._clock = clock
        self._began = clock()
        self._calls = Calls(metrics, CALLS, "status")

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """The numbers of now."""
        response = pb.StatusResponse(release=own_formats().release, part=self._part)
        async with translated(context, self._calls):
            caller = self._tenants.admit(context, OPERATOR, ADMIN)
            operator = OPERATOR in caller.roles
            if operator:  # the store is asked, which may take a second
                await asyncio.to_thread(self._metrics.refresh)
            status = ProcessStatus(self._metrics)
            response.running_s = self._clock() - self._began
            response.counting = self._metrics.counts
            own = status.tenant(caller.tenant)
            if own is not None:
                response.own.CopyFrom(own)
            if not operator:
                return response
            response.tenants.extend(status.tenants())
            if self._part == "ingress":
                response.ingress.CopyFrom(status.ingress())
                running = None if self._encoders is None else await self._encoders()
                if running is not None:
                    response.ingress.encoders = running
            else:
                response.reload.CopyFrom(status.reload())
        return response
