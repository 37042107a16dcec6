"""What a process counted, as `prometheus_client` reads it: the one adapter over `Metrics`.

The package is an optional one: nothing imports this module before metrics are to be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lexico_proto.metrics import Distribution, Family, Metrics


class MetricsCollector(Collector):
    """Reads the numbers whenever the registry is read. There are no series of creation times."""

    def __init__(self, metrics: Metrics) -> None:
        """
        Args:
            metrics: whose numbers are shown.
        """
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Every family of which there is a number."""
        self._metrics.refresh()
        for family, children in self._metrics.snapshot().items():
            shown = _numbers(family)
            for values, number in children.items():
                shown.add_metric(values, number)
            yield shown
        for family, found in self._metrics.distributions().items():
            histogram = HistogramMetricFamily(family.name, family.help, labels=_names(family))
            for values, distribution in found.items():
                histogram.add_metric(values, _buckets(family, distribution), distribution.total)
            yield histogram

    def describe(self) -> list[Metric]:
        """Nothing: what there is comes and goes."""
        return []


def registry_of(metrics: Metrics) -> CollectorRegistry:
    """A registry of a process's own: its numbers, and what the system says of the process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MetricsCollector(metrics))
    ProcessCollector(registry=registry)
    return registry


def _names(family: Family) -> list[str]:
    return [label.name for label in family.labels]


def _numbers(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    kind = GaugeMetricFamily if family.gauge else CounterMetricFamily
    return kind(family.name, family.help, labels=_names(family))


def _buckets(family: Family, found: Distribution) -> list[tuple[str, float]]:
    bounds = [*map(str, family.buckets), "+Inf"]
    return list(zip(bounds, accumulate(map(float, found.counts)), strict=True))
