"""All of it at a glance: is it there, does it help, does it fail."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.calls import FAULTS
from k8s.monitoring.dashboards.queries import (
    HERE,
    NAMESPACE,
    PROCESS,
    or_zero,
    quantiles,
    rate,
)
from k8s.monitoring.grafana import ALL_IS_GOOD, NONE_IS_GOOD, Dashboard, Panel, Query

_OURS: Final = f"and on (job, instance) lexico_build_info{{{HERE}}}"
_FAILED: Final = or_zero(rate("lexico_calls_total", f'outcome=~"{FAULTS}"'))


def _count(part: str) -> str:
    return or_zero(f'count(lexico_build_info{{part="{part}", {HERE}}})')


def _stat(title: str, what: str, unit: str, expr: str, **more: object) -> Panel:
    return Panel(title, what, unit, (Query(expr),), kind="stat", width=4, **more)  # type: ignore[arg-type]


_NOW: Final = (
    _stat(
        "Reload servers",
        "Processes that answer Match and Get.",
        "none",
        _count("reload-server"),
        steps=ALL_IS_GOOD,
    ),
    _stat(
        "Ingresses", "Processes that take offloads.", "none", _count("ingress"), steps=ALL_IS_GOOD
    ),
    _stat(
        "Store",
        "Whether any reload server reaches it.",
        "none",
        or_zero(f"max(lexico_store_up{{{HERE}}})"),
        steps=ALL_IS_GOOD,
        words={"0": "away", "1": "there"},
    ),
    _stat(
        "Alerts",
        "Alerts of Lexico Offload that fire, in all namespaces. Each has a runbook.",
        "none",
        or_zero('count(ALERTS{alertname=~"Lexico.*", alertstate="firing"})'),
        steps=NONE_IS_GOOD,
    ),
    _stat(
        "Hit rate",
        "Part of the tokens of prompts that was found, in the last hour.",
        "percentunit",
        f"sum(rate(lexico_hit_tokens_total{{{HERE}}}[1h]))"
        f" / sum(rate(lexico_match_tokens_total{{{HERE}}}[1h]))",
        nothing="no loads",
    ),
    _stat(
        "Certificate ends in",
        "The first certificate to end. It should never come near.",
        "s",
        f"min(lexico_certificate_end_timestamp_seconds{{{HERE}}} - time()) or on () vector(-1)",
        steps=((None, "blue"), (0, "red"), (7 * 86400, "green")),
        words={"-1": "no TLS"},
    ),
)

_LOAD: Final = (
    Panel(
        "Tokens of prompts",
        "Tokens that nodes asked for, and those of them that were found: what lies between was "
        "prefilled.",
        "short",
        (
            Query(rate("lexico_match_tokens_total"), "asked for"),
            Query(rate("lexico_hit_tokens_total"), "found"),
        ),
    ),
    Panel(
        "Bytes",
        "Raw bytes that came, what was stored of them, and frames that were sent to nodes.",
        "Bps",
        (
            Query(or_zero(rate("lexico_received_bytes_total")), "received"),
            Query(or_zero(rate("lexico_stored_bytes_total")), "stored"),
            Query(or_zero(rate("lexico_sent_bytes_total")), "sent"),
        ),
    ),
    Panel(
        "Pages to nodes",
        "Pages whose last frame was sent.",
        "ops",
        (Query(or_zero(rate("lexico_sent_pages_total")), "sent"),),
    ),
    Panel(
        "Calls",
        "Calls that ended, by method.",
        "ops",
        (Query(rate("lexico_calls_total", by="method"), "{{method}}"),),
        stacked=True,
    ),
    Panel(
        "Seconds of calls",
        "A node waits for match before it prefills, and for get in its place.",
        "s",
        quantiles("lexico_call_seconds", 'method=~"match|get|put"', "method"),
    ),
)

_FAULTS: Final = (
    Panel(
        "Calls that fail by our fault",
        "Part of all calls. The objective is 1 % over 30 days.",
        "percentunit",
        (
            Query(
                f"({_FAILED}) / on () {rate('lexico_calls_total')}",
                "failed",
            ),
        ),
        steps=((None, "green"), (0.01, "red")),
    ),
    Panel(
        "Calls that did not end well",
        "By reason; docs/failures.md has a line for each. cancelled is a caller that went away.",
        "ops",
        (Query(or_zero(rate("lexico_calls_total", 'outcome!="ok"', "outcome")), "{{outcome}}"),),
        stacked=True,
    ),
    Panel(
        "Pages that a Get could not give",
        "absent: gone since the Match. damaged: removed from the store. newer: upgrade reload "
        "servers.",
        "ops",
        (Query(or_zero(rate("lexico_misses_total", by="reason")), "{{reason}}"),),
    ),
    Panel(
        "Nodes that ask for the set of their model",
        "none: no set is published for it, and the node runs lossless. Each asks about once a "
        "minute.",
        "ops",
        (Query(or_zero(rate("lexico_set_searches_total", by="outcome")), "{{outcome}}"),),
    ),
    Panel(
        "Damage and refusals",
        "Damaged bytes, dictionary sets that were refused, and files that could not be read again.",
        "ops",
        (
            Query(or_zero(rate("lexico_checksum_failures_total")), "damaged bytes"),
            Query(or_zero(rate("lexico_sets_refused_total")), "sets"),
            Query(or_zero(rate("lexico_file_reads_total", 'outcome="refused"')), "files"),
        ),
    ),
)

_PROCESSES: Final = (
    Panel(
        "Processes that answer Prometheus",
        "1 for each that does, of those that did within a day.",
        "none",
        (
            Query(
                f"up and on (job, instance) max_over_time(lexico_build_info{{{HERE}}}[1d])", PROCESS
            ),
        ),
        most=1,
    ),
    Panel(
        "Starts in the last hour",
        "How often each process began anew.",
        "none",
        (Query(f"changes(process_start_time_seconds[1h]) {_OURS}", PROCESS),),
    ),
    Panel(
        "Memory",
        "Resident bytes. Those of an ingress have pages in shared memory among them.",
        "bytes",
        (Query(f"process_resident_memory_bytes {_OURS}", PROCESS),),
    ),
    Panel(
        "Processors",
        "Processor seconds a second.",
        "none",
        (Query(f"rate(process_cpu_seconds_total[$__rate_interval]) {_OURS}", PROCESS),),
    ),
    Panel(
        "Releases",
        "Which parts run which release: several at a time are an upgrade that is under way.",
        "none",
        (Query(f"count by (version, part) (lexico_build_info{{{HERE}}})"),),
        kind="table",
        width=24,
    ),
)

DASHBOARD: Final = Dashboard(
    "fleet",
    "Lexico Offload / Fleet",
    "Is it there, does it help, does it fail.",
    (NAMESPACE,),
    {
        "Now": _NOW,
        "What it does": _LOAD,
        "What fails": _FAULTS,
        "Processes": _PROCESSES,
    },
)
