"""The store, and the reload servers that read it."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.dashboards.queries import (
    HERE,
    NAMESPACE,
    PODS,
    PROCESS,
    or_zero,
    quantiles,
    rate,
)
from k8s.monitoring.grafana import Dashboard, Panel, Query, Variable


def _most(metric: str) -> str:
    """All reload servers of one store say the same of it."""
    return f"max by (namespace) ({metric}{{{HERE}}})"


def _most_rate(metric: str) -> str:
    return f"max by (namespace) (rate({metric}{{{HERE}}}[$__rate_interval]))"


_STORE: Final = (
    Panel(
        "Reached",
        "1 for each reload server that reaches the store.",
        "none",
        (Query(f"lexico_store_up{{{PODS}}}", PROCESS),),
        most=1,
        width=8,
    ),
    Panel(
        "Memory",
        "Bytes that the store's servers use, and their maxmemory (0 for none). A store that is "
        "full and evicts is healthy as long as pages live long enough.",
        "bytes",
        (
            Query(_most("lexico_store_bytes"), "used {{namespace}}"),
            Query(_most("lexico_store_limit_bytes"), "maxmemory {{namespace}}"),
        ),
        width=8,
    ),
    Panel(
        "How long memory lasts",
        "Bytes in use over bytes that are stored a second, in the last hour: in a full store the "
        "life of a page that nobody asks for.",
        "s",
        (
            Query(
                f"{_most('lexico_store_bytes')} / "
                f"sum by (namespace) (rate(lexico_stored_bytes_total{{{HERE}}}[1h]))",
                "{{namespace}}",
            ),
        ),
        width=8,
        steps=((None, "red"), (3600, "green")),
        nothing="nothing was stored",
    ),
    Panel(
        "Keys that went",
        "Evicted because the store is full, or expired because their time was over.",
        "ops",
        (
            Query(_most_rate("lexico_store_evictions_total"), "evicted {{namespace}}"),
            Query(_most_rate("lexico_store_expiries_total"), "expired {{namespace}}"),
        ),
        width=8,
    ),
    Panel(
        "Connections",
        "To the store's servers, of everybody.",
        "none",
        (Query(_most("lexico_store_connections"), "{{namespace}}"),),
        width=8,
    ),
    Panel(
        "Commands sent again",
        "After a lost connection, a failover, or a slot that moved.",
        "ops",
        (Query(or_zero(rate("lexico_store_retries_total")), "commands"),),
        width=8,
    ),
)

_RELOAD: Final = (
    Panel(
        "Streams",
        "Part of the streams that a reload server serves at a time. At 1 the next Get is refused.",
        "percentunit",
        (Query(f"lexico_streams{{{PODS}}} / lexico_streams_limit{{{PODS}}}", PROCESS),),
        most=1,
        width=8,
        steps=((None, "green"), (0.9, "red")),
    ),
    Panel(
        "Buffers",
        "Part of the bytes that may be held for streams. At 1 streams wait for each other.",
        "percentunit",
        (
            Query(
                f"lexico_buffered_bytes{{{PODS}}} / lexico_buffered_limit_bytes{{{PODS}}}", PROCESS
            ),
        ),
        most=1,
        width=8,
        steps=((None, "green"), (0.9, "red")),
    ),
    Panel(
        "Calls that wait for the store",
        "Match and List calls.",
        "none",
        (Query(f"lexico_store_calls{{{PODS}}}", PROCESS),),
        width=8,
    ),
    Panel(
        "Seconds of Match and Get",
        "A Match waits for the store; a Get also for the node that reads.",
        "s",
        quantiles("lexico_call_seconds", 'method=~"match|get"', "method", PODS),
    ),
    Panel(
        "Frames sent",
        "Bytes by reload server.",
        "Bps",
        (Query(rate("lexico_sent_bytes_total", by="pod, instance", here=PODS), PROCESS),),
        stacked=True,
    ),
    Panel(
        "Pages that a Get could not give",
        "By reason.",
        "ops",
        (Query(rate("lexico_misses_total", by="reason", here=PODS), "{{reason}}"),),
    ),
    Panel(
        "Damaged bytes",
        "store: a frame was not what was stored, and its page was removed. upload: a page was "
        "altered on its way in, and refused.",
        "ops",
        (Query(or_zero(rate("lexico_checksum_failures_total", by="where")), "{{where}}"),),
    ),
)

DASHBOARD: Final = Dashboard(
    "store",
    "Lexico Offload / Store and reload",
    "The store as reload servers see it, and what they read from it.",
    (NAMESPACE, Variable("pod", f"label_values(lexico_streams{{{HERE}}}, pod)")),
    {"Store": _STORE, "Reload servers": _RELOAD},
)
