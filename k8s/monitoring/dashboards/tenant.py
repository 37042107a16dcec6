"""What each tenant finds and stores."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.dashboards.queries import HERE, NAMESPACE, or_zero, rate
from k8s.monitoring.grafana import Dashboard, Panel, Query, Variable

_CHOSEN: Final = f'{HERE}, tenant=~"$tenant"'
_BYTES: Final = "lexico_tenant_bytes_total"


def _rate(metric: str, labels: str = "", by: str = "tenant") -> str:
    return rate(metric, labels, by, _CHOSEN)


def _bytes(title: str, what: str, direction: str) -> Panel:
    expr = or_zero(_rate(_BYTES, f'direction="{direction}"'))
    return Panel(title, what, "Bps", (Query(expr, "{{tenant}}"),), width=8, stacked=True)


def _of_day(metric: str, labels: str = "") -> str:
    matchers = ", ".join(each for each in (labels, _CHOSEN) if each)
    return f"sum by (tenant) (increase({metric}{{{matchers}}}[1d]))"


DASHBOARD: Final = Dashboard(
    "tenant",
    "Lexico Offload / Tenants",
    "What each tenant finds and stores. A process names its first 50 tenants; the others are "
    "`other`.",
    (NAMESPACE, Variable("tenant", f"label_values({_BYTES}{{{HERE}}}, tenant)")),
    {
        "Loads": (
            Panel(
                "Hit rate",
                "Part of the tokens of its prompts that each tenant found.",
                "percentunit",
                (
                    Query(
                        f"{_rate('lexico_hit_tokens_total')} / "
                        f"{_rate('lexico_match_tokens_total')}",
                        "{{tenant}}",
                    ),
                ),
                most=1,
                nothing="no loads",
            ),
            Panel(
                "Tokens asked for",
                "Tokens of prompts that nodes of each tenant wanted to load.",
                "short",
                (Query(_rate("lexico_match_tokens_total"), "{{tenant}}"),),
                stacked=True,
            ),
            Panel(
                "Matches",
                "By how many of the pages were there: all, some or none.",
                "ops",
                (Query(_rate("lexico_matches_total", by="outcome"), "{{outcome}}"),),
                stacked=True,
            ),
            Panel(
                "Hit rate by codec",
                "Nodes with another codec find none of the pages that these find.",
                "percentunit",
                (
                    Query(
                        f"{_rate('lexico_hit_tokens_total', by='codec')} / "
                        f"{_rate('lexico_match_tokens_total', by='codec')}",
                        "{{codec}}",
                    ),
                ),
                most=1,
                nothing="no loads",
            ),
        ),
        "Bytes": (
            _bytes("Received", "Raw bytes of whole pages that came.", "received"),
            _bytes("Stored", "Bytes of frames that were stored of them.", "stored"),
            _bytes("Sent", "Bytes of frames that were sent to nodes.", "sent"),
            Panel(
                "Quotas",
                "Calls that were refused because a tenant has what it may have. Which one, the log "
                "says; `lexico quota` shows its bounds.",
                "ops",
                (
                    Query(
                        or_zero(
                            rate("lexico_calls_total", 'outcome="quota-exceeded"', by="method")
                        ),
                        "{{method}}",
                    ),
                ),
                width=24,
            ),
        ),
        "Of a day": (
            Panel(
                "Stored in 24 hours",
                "Bytes of frames.",
                "bytes",
                (Query(_of_day(_BYTES, 'direction="stored"')),),
                kind="table",
                width=8,
            ),
            Panel(
                "Sent in 24 hours",
                "Bytes of frames.",
                "bytes",
                (Query(_of_day(_BYTES, 'direction="sent"')),),
                kind="table",
                width=8,
            ),
            Panel(
                "Tokens found in 24 hours",
                "Tokens that nobody had to prefill, if their frames came.",
                "short",
                (Query(_of_day("lexico_hit_tokens_total")),),
                kind="table",
                width=8,
            ),
        ),
    },
)
