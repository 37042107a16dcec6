"""Calls of nodes: what part fails, how long they take, and what nodes get of them.

The objective is that 99 in 100 calls do not fail by the service's fault, over 30 days: a call that
fails costs a prefill, never an answer. Both windows of a pair must burn, so that an alert comes
early and goes with its cause.
"""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.alert import Alert, at_least, grew, share

BUDGET: Final = 0.01
"""Part of all calls that may fail."""
FAULTS: Final = "internal|unavailable|store-unavailable|encoder-lost|deadline-expired|configuration"
"""Reasons that are the service's; those of callers, and bounds that are reached, are none."""
RELOAD: Final = "match|get"
OFFLOAD: Final = "put"


def _failed(methods: str) -> str:
    return f'lexico_calls_total{{method=~"{methods}", outcome=~"{FAULTS}"}}'


def _burns(methods: str, long: str, short: str, speed: float) -> str:
    whole, failed = f'lexico_calls_total{{method=~"{methods}"}}', _failed(methods)
    most = f"{speed:g} * {BUDGET}"
    return (
        f"{share(failed, whole, long)} > {most}"
        f" and {share(failed, whole, short)} > {most}"
        f" and {at_least(10, failed, long)}"
    )


def _budget(name: str, methods: str, calls: str, lost: str) -> tuple[Alert, Alert]:
    summary = "{{ $value | humanizePercentage }} of all " + calls + " in {{ $labels.namespace }} "
    return (
        Alert(
            name,
            "critical",
            _burns(methods, "1h", "5m", 14.4),
            "2m",
            summary + "failed in the last hour",
            f"{lost} At this rate the errors of 30 days are used up in two days.",
        ),
        Alert(
            name,
            "warning",
            _burns(methods, "6h", "30m", 6),
            "15m",
            summary + "failed in the last 6 hours",
            f"{lost} At this rate the errors of 30 days are used up in five days.",
        ),
    )


_BUSY: Final = 'lexico_calls_total{outcome="busy"}'
_MATCH: Final = 'lexico_call_seconds_bucket{method="match"}'
_FAILED_LOADS: Final = 'lexico_client_misses_total{reason!="absent"}'
_LOADS: Final = 'lexico_client_seconds_count{operation="load"}'


def _hit_rate(window: str, ago: str = "") -> str:
    hits, asked = (f"lexico_{what}_tokens_total[{window}]{ago}" for what in ("hit", "match"))
    return f"sum by (namespace) (rate({hits})) / sum by (namespace) (rate({asked}))"


ALERTS: Final = (
    *_budget(
        "LexicoReloadErrorBudgetBurn",
        RELOAD,
        "Match and Get calls",
        "Nodes compute these prompts in place of loading them.",
    ),
    *_budget(
        "LexicoOffloadErrorBudgetBurn",
        OFFLOAD,
        "Put calls",
        "These prompts are not stored, and will be computed again.",
    ),
    Alert(
        "LexicoRefusingCalls",
        "warning",
        f"{share(_BUSY, 'lexico_calls_total', '15m', 'namespace, method')} > 0.05"
        f" and {at_least(10, _BUSY, '15m', 'namespace, method')}",
        "15m",
        "{{ $value | humanizePercentage }} of all {{ $labels.method }} calls in "
        "{{ $labels.namespace }} are refused as busy",
        "There is more to do than the service has room for: it refuses before it slows down.",
    ),
    Alert(
        "LexicoMatchSlow",
        "warning",
        f"histogram_quantile(0.99, sum by (namespace, le) (rate({_MATCH}[10m]))) > 0.5"
        ' and sum by (namespace) (rate(lexico_call_seconds_count{method="match"}[10m])) > 0.1',
        "10m",
        "One Match in 100 takes {{ $value | humanizeDuration }} in {{ $labels.namespace }}",
        "A node waits for Match before it prefills: each prompt is later by as much.",
    ),
    Alert(
        "LexicoReloadNearlyFull",
        "warning",
        "avg_over_time(lexico_streams[10m]) / lexico_streams_limit > 0.9"
        " or avg_over_time(lexico_buffered_bytes[10m]) / lexico_buffered_limit_bytes > 0.9",
        "10m",
        "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its streams or buffers",
        "With all streams taken a Get is refused; with all buffers taken streams wait.",
    ),
    Alert(
        "LexicoHitRateFell",
        "warning",
        f"{_hit_rate('1h')} < 0.5 * ({_hit_rate('1d', ' offset 1h')} > 0.1)"
        f" and {at_least(100000, 'lexico_match_tokens_total', '1h')}",
        "30m",
        "Only {{ $value | humanizePercentage }} of tokens in {{ $labels.namespace }} are found, "
        "less than half of the day before",
        "Nodes prefill what they found before: other prompts came, or pages are not found again.",
    ),
    Alert(
        "LexicoNewerFrames",
        "warning",
        'sum by (namespace) (increase(lexico_misses_total{reason="newer"}[30m])) > 0',
        "30m",
        "Reload servers in {{ $labels.namespace }} do not know the format of stored frames",
        "Encoders are of a later release than reload servers: what they store is a miss.",
    ),
    Alert(
        "LexicoLoadsFail",
        "warning",
        f"{share(_FAILED_LOADS, _LOADS, '15m')} > 0.05 and {at_least(5, _FAILED_LOADS, '15m')}",
        "10m",
        "{{ $value | humanizePercentage }} of the loads of nodes in {{ $labels.namespace }} fail",
        "What nodes see: each of these prompts was computed, after the time that the load took.",
    ),
    Alert(
        "LexicoChecksumFailures",
        "warning",
        grew("lexico_checksum_failures_total", "30m"),
        "0m",
        "{{ $labels.instance }} found damaged bytes ({{ $labels.where }})",
        "The page was refused or removed, and no node was given it: memory, network or software "
        "on its way damages bytes.",
    ),
)
