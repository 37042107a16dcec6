"""The client's counters in a registry of `prometheus_client`, which must be installed.

from lexico_client.metrics import register
register()          # beside whatever this process shows already
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry

from lexico_proto.metrics import PROCESS, Metrics
from lexico_proto.prometheus import MetricsCollector

__all__ = ["register"]


def register(registry: CollectorRegistry = REGISTRY, metrics: Metrics = PROCESS) -> None:
    """Shows what clients count from now on.

    Args:
        registry: of the application; once for each.
        metrics: those given to the clients, by default those of the process.
    """
    registry.register(MetricsCollector(metrics))
