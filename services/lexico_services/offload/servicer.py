"""Put as an RPC: messages to the ingress and back, nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from lexico_codec.put_messages import Malformed, PageEnd, PutPart, parse_put
from lexico_codec.wire import spec_from_wire
from lexico_proto.errors import InvalidInput, StreamTruncated
from lexico_proto.metrics import CALLS, PROCESS, Calls, Metrics
from lexico_proto.v1 import offload_pb2 as pb
from lexico_proto.v1 import operations_pb2_grpc, versions_pb2_grpc
from lexico_services import status_servicer, versions_servicer
from lexico_services.admission import Slots, in_time
from lexico_services.auth import Tenants
from lexico_services.caller import Caller
from lexico_services.config import OffloadConfig
from lexico_services.offload.ingress import Ingress
from lexico_services.offload.upload import Report, Upload
from lexico_services.policies import Policies
from lexico_services.quotas import CallRates
from lexico_services.roles import OFFLOAD
from lexico_services.server import add_handlers
from lexico_services.status import translated
from lexico_services.trace import trace_of
from lexico_worker.page_encoder import Outcome, PageDone

_log = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Offload"].full_name
SERVICES: Final = (SERVICE, versions_servicer.SERVICE, status_servicer.SERVICE)
"""Everything that an ingress serves."""

PUT: Final = pb.DESCRIPTOR.services_by_name["Offload"].methods_by_name["Put"].name

_OUTCOMES: Final = {
    Outcome.STORED: pb.PAGE_OUTCOME_STORED,
    Outcome.PRESENT: pb.PAGE_OUTCOME_PRESENT,
    Outcome.IN_PROGRESS: pb.PAGE_OUTCOME_IN_PROGRESS,
}

Context = grpc.aio.ServicerContext[bytes, pb.PutResponse]


class OffloadServicer:
    """Serves lexico_proto.v1.Offload, and Versions and Operations beside it."""

    def __init__(
        self,
        ingress: Ingress,
        tenants: Tenants,
        config: OffloadConfig,
        metrics: Metrics = PROCESS,
        policies: Policies | None = None,
    ) -> None:
        """
        Args:
            ingress: what receives the pages.
            tenants: who is calling.
            config: bounds.
            metrics: where calls are counted.
            policies: what each tenant may have.
        """
        self._rates = CallRates(policies or Policies())
        self._ingress = ingress
        self._config = config
        self._streams = Slots(config.max_streams, "uploads")
        self._tenants = tenants
        self._puts = Calls(metrics, CALLS, "put")
        self._versions = versions_servicer.VersionsServicer(tenants, metrics)
        self._operations = status_servicer.StatusServicer(
            "ingress", tenants, metrics, ingress.encoders
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the services, with a reader of messages that does not copy their payload."""
        put = grpc.stream_unary_rpc_method_handler(
            self.put,
            request_deserializer=parse_put,
            response_serializer=pb.PutResponse.SerializeToString,
        )
        add_handlers(server, SERVICE, {PUT: put})
        versions_pb2_grpc.add_VersionsServicer_to_server(self._versions, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self._operations, server)

    async def put(self, parts: AsyncIterator[PutPart], context: Context) -> pb.PutResponse:
        """One header, then pages; see offload.proto."""
        async with translated(context, self._puts):
            caller = self._tenants.admit(context, OFFLOAD)
            self._rates.count(caller.scope)
            with self._streams.held():
                return await self._put(parts, context, caller)
        raise AssertionError("translated() aborts the call")  # pragma: no cover

    async def _put(
        self, parts: AsyncIterator[PutPart], context: Context, caller: Caller
    ) -> pb.PutResponse:
        header = await in_time(_header(parts), self._config.idle_s)
        upload = Upload(
            caller.scope,
            spec_from_wire(header.spec),
            header.token_ids,
            tuple(header.pages),
            tuple(header.page_keys),
            header.first_page,
            header.parent_key,
            trace_of(context.invocation_metadata()),
            header.page_inputs,
            caller.tenant,
            header.assembly,
        )
        if header.durability not in pb.Durability.values():
            raise InvalidInput(f"durability {header.durability} is unknown")
        wait = header.durability == pb.DURABILITY_COMMITTED
        report = await self._ingress.put(upload, _pages(parts), wait_committed=wait)
        _log.info("put pages=%d seconds=%s", len(report.pages), report.seconds)
        return _response(report)


async def _header(parts: AsyncIterator[PutPart]) -> pb.PutHeader:
    header = await anext(parts, None)
    if header is None:
        raise StreamTruncated("the stream is empty: a Put begins with its header")
    if not isinstance(header, pb.PutHeader):
        raise InvalidInput("a Put begins with its header")
    return header


async def _pages(parts: AsyncIterator[PutPart]) -> AsyncIterator[memoryview | PageEnd]:
    async for part in parts:
        if isinstance(part, Malformed):
            raise InvalidInput(f"the stream holds {part.why}")
        if isinstance(part, pb.PutHeader):
            raise InvalidInput("a Put has one header")
        yield part


def _response(report: Report) -> pb.PutResponse:
    def result(page: int, done: PageDone | None) -> Any:
        if done is None:
            return pb.PageResult(page=page, outcome=pb.PAGE_OUTCOME_RECEIVED)
        outcome = _OUTCOMES[done.outcome]
        return pb.PageResult(page=page, outcome=outcome, stored_bytes=done.stored_bytes)

    return pb.PutResponse(
        pages=[result(page, done) for page, done in report.pages.items()],
        seconds=pb.StageSeconds(**vars(report.seconds)),
    )
