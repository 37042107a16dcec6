"""The page store, as reload servers see it. All of one namespace see the same: the most counts."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.alert import Alert, at_least


def _most(what: str) -> str:
    return f"max by (namespace) ({what})"


_UP: Final = _most("lexico_store_up")

ALERTS: Final = (
    Alert(
        "LexicoStoreUnreachable",
        "critical",
        f"{_UP} == 0",
        "1m",
        "No reload server in {{ $labels.namespace }} reaches the store",
        "Every load is a miss, and every offload is lost.",
    ),
    Alert(
        "LexicoStoreUnreachable",
        "warning",
        f"lexico_store_up == 0 and on (namespace) {_UP} == 1",
        "5m",
        "{{ $labels.instance }} does not reach the store, others do",
        "Loads through this reload server are misses.",
    ),
    Alert(
        "LexicoStoreTooSmall",
        "warning",
        f"{_most('lexico_store_bytes')}"
        " / sum by (namespace) (rate(lexico_stored_bytes_total[1h])) < 3600"
        f" and {_most('rate(lexico_store_evictions_total[1h])')} > 0",
        "30m",
        "A full store in {{ $labels.namespace }} keeps a page for {{ $value | humanizeDuration }}",
        "Pages go before they are asked for again.",
    ),
    Alert(
        "LexicoStoreRefusing",
        "warning",
        at_least(5, 'lexico_page_failures_total{reason="busy"}', "15m")
        + f" and {_most('lexico_store_bytes')} / ({_most('lexico_store_limit_bytes')} > 0) > 0.95",
        "5m",
        "The store in {{ $labels.namespace }} is full and takes no pages",
        "It finds nothing that it may let go: every offload is lost.",
    ),
    Alert(
        "LexicoStoreRetries",
        "warning",
        "sum by (namespace) (rate(lexico_store_retries_total[15m])) > 0.1",
        "15m",
        "{{ $value | humanize }} commands a second in {{ $labels.namespace }} are sent to the "
        "store again",
        "Connections break or servers change: calls take longer, and some fail.",
    ),
)
