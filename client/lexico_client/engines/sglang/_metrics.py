"""The backend's counters beside SGLang's own, where its server shows them: `--enable-metrics`."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from lexico_proto.metrics import (
    CLIENT_BYTES,
    CLIENT_MISSES,
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_TOKENS,
    PROCESS,
    Metrics,
)

SHOWN: Final = (ENGINE_REQUESTS, ENGINE_TOKENS, ENGINE_PAGES, CLIENT_BYTES, CLIENT_MISSES)


class Shown:
    """Counters of `prometheus_client`, which SGLang's server collects from the processes of its
    schedulers by their files: a collector of our own would not be asked."""

    def __init__(self, metrics: Metrics, registry: CollectorRegistry) -> None:
        self._metrics = metrics
        self._counters = {
            family.name: Counter(
                family.name,
                family.help,
                [label.name for label in family.labels],
                registry=registry,
            )
            for family in SHOWN
        }

    def update(self) -> None:
        """Adds what was counted since the last time."""
        for name, values, number in self._metrics.take_changes(SHOWN):
            if isinstance(number, int):
                self._counters[name].labels(*values).inc(number)


@cache
def shown_by_process() -> Shown:
    """Those of this process, of which there are one each, however often a backend is attached."""
    return Shown(PROCESS, REGISTRY)
