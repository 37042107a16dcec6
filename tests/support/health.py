"""What a probe of Kubernetes sees: standard gRPC health, without TLS and without a token."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.waiting import PATIENCE_S

SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"


def health_of(address: str, service: str) -> str:
    """The status of a service, or the gRPC status of the call where it fails."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
