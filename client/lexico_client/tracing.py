"""Traces of loads and offloads, which go on in the service. Needs the extra `otel`.

    from lexico_client import tracing
    tracing.start("http://collector:4317", sample=0.01)     # spans of ours alone
    tracing.use(provider)                                   # the application's own provider

The application's current span is the parent of the client's. Start it in each process after a fork.
"""

from __future__ import annotations

from typing import Any

from lexico_proto import tracing
from lexico_proto.tracing import TracingConfig

__all__ = ["start", "stop", "use"]


def start(endpoint: str | None = None, sample: float = 0.01) -> bool:
    """Exports spans by OTLP over gRPC.

    Args:
        endpoint: such as `http://collector:4317`; None for what OTEL_EXPORTER_OTLP_ENDPOINT says.
        sample: part of the traces that begin here which is sampled.

    Returns:
        Whether there is anywhere to send them.

    Raises:
        ConfigurationError: no such part, or the extra is not installed.
    """
    return tracing.start(TracingConfig(endpoint, sample), "client")


def use(provider: Any, sample: float = 1.0) -> None:
    """Makes spans by an application's `TracerProvider`, which stays the application's.

    Args:
        provider: of `opentelemetry.sdk.trace`, or what is like it.
        sample: part of the traces that begin here; with a current span, that one decides.
    """
    tracing.use(provider, sample)


def stop() -> None:
    """Sends what was not sent yet, and makes no more spans."""
    tracing.stop()
