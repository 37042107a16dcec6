"""The connector's counters on their way to vLLM's own metrics: its log lines, and /metrics of its
server. They come from the processes of scheduler and workers with what these answer anyway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from lexico_proto.metrics import (
    CLIENT_BYTES,
    CLIENT_MISSES,
    CLIENT_SETS_REFUSED,
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_STAGED,
    ENGINE_TOKENS,
    Family,
    Metrics,
)

SHOWN: Final = (
    ENGINE_REQUESTS,
    ENGINE_TOKENS,
    ENGINE_PAGES,
    CLIENT_BYTES,
    CLIENT_MISSES,
    CLIENT_SETS_REFUSED,
)
"""Families of counters; there is one gauge beside, `ENGINE_STAGED`."""
_BETWEEN: Final = " "


class LexicoStats(KVConnectorStats):  # type: ignore[misc]
    """What was counted since the last time, `family value value …` → number; of the gauge what it
    is now."""

    @classmethod
    def taken(cls, metrics: Metrics) -> LexicoStats | None:
        """What came to the counters since this was last called; None where nothing did."""
        data = {
            _BETWEEN.join((name, *values)): number
            for name, values, number in metrics.take_changes((*SHOWN, ENGINE_STAGED))
            if isinstance(number, int)
        }
        if ENGINE_STAGED.name in data:
            data[ENGINE_STAGED.name] = metrics.gauge(ENGINE_STAGED).number
        return cls(data=data) if data else None

    def reset(self) -> None:
        self.data: dict[str, int] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, number in other.data.items():
            before = 0 if name == ENGINE_STAGED.name else self.data.get(name, 0)
            self.data[name] = before + number
        return self

    def reduce(self) -> dict[str, int | float]:
        """As vLLM writes it into its log."""
        return {name.removeprefix("lexico_"): number for name, number in sorted(self.data.items())}

    def is_empty(self) -> bool:
        return not self.data


class LexicoPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The families, as vLLM's server shows them."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {family.name: self._counter(family, labelnames) for family in SHOWN}
        self._staged = self._gauge_cls(
            name=ENGINE_STAGED.name,
            documentation=ENGINE_STAGED.help,
            labelnames=labelnames,
            multiprocess_mode="mostrecent",
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds what one engine counted."""
        engine = [str(value) for value in self.per_engine_labelvalues[engine_idx]]
        for name, number in transfer_stats_data.items():
            family, *values = name.split(_BETWEEN)
            if family == ENGINE_STAGED.name:
                self._staged.labels(*engine).set(number)
            elif family in self._counters:
                self._counters[family].labels(*engine, *values).inc(number)

    def _counter(self, family: Family, labelnames: Iterable[str]) -> Any:
        labels = [*labelnames, *(label.name for label in family.labels)]
        return self._counter_cls(name=family.name, documentation=family.help, labelnames=labels)
