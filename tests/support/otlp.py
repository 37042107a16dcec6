"""A collector: takes spans by OTLP over gRPC and keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc


@dataclass
class Collector:
    """What came."""

    endpoint: str = ""
    spans: list[Any] = field(default_factory=list)
    """`opentelemetry.proto.trace.v1.trace_pb2.Span`."""
    services: set[str] = field(default_factory=set)
    """Values of `service.name`."""

    def names(self, trace: bytes | None = None) -> list[str]:
        """Of the spans that came, or of those of a trace."""
        return sorted(s.name for s in self.spans if trace is None or s.trace_id == trace)

    def one(self, name: str) -> Any:
        """The span of this name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found


def attributes(span: Any) -> dict[str, Any]:
    """Of a span, by name."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free loopback port, for the block."""
    from opentelemetry.proto.collector.trace.v1 import (
        trace_service_pb2,
        trace_service_pb2_grpc,
    )

    collector = Collector()

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            for resource in request.resource_spans:
                named = {a.key: a.value.string_value for a in resource.resource.attributes}
                collector.services.add(named.get("service.name", ""))
                for scope in resource.scope_spans:
                    collector.spans.extend(scope.spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)
