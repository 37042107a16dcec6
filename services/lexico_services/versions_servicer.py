"""Describe as an RPC: which formats the two ends of a call know."""

from __future__ import annotations

import logging
from typing import Final

import grpc

from lexico_codec.formats import formats_from_wire, formats_to_wire, own_formats
from lexico_proto.metrics import CALLS, PROCESS, Calls, Metrics
from lexico_proto.v1 import versions_pb2 as pb
from lexico_proto.v1 import versions_pb2_grpc
from lexico_services.auth import Tenants
from lexico_services.roles import OFFLOAD, RELOAD
from lexico_services.status import translated

_log = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Versions"].full_name


class VersionsServicer(versions_pb2_grpc.VersionsServicer):
    """Serves lexico_proto.v1.Versions."""

    def __init__(self, tenants: Tenants, metrics: Metrics = PROCESS) -> None:
        """
        Args:
            tenants: who may ask: those who may make other calls.
            metrics: where calls are counted.
        """
        self._tenants = tenants
        self._describes = Calls(metrics, CALLS, "describe")

    async def Describe(
        self,
        request: pb.DescribeRequest,
        context: grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse],
    ) -> pb.DescribeResponse:
        """What this process reads and writes."""
        response = pb.DescribeResponse()
        async with translated(context, self._describes):
            self._tenants.admit(context, OFFLOAD, RELOAD)
            caller, own = formats_from_wire(request.caller), own_formats()
            if (caller.frames, caller.codecs) != (own.frames, own.codecs):
                _log.info("other formats release=%r frames=%s", caller.release, caller.frames)
            response.server.CopyFrom(formats_to_wire(own))
        return response
