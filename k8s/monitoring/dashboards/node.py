"""What nodes see: those that show the client's counters."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.dashboards.queries import HERE, PODS, or_zero, quantiles, rate
from k8s.monitoring.grafana import Dashboard, Panel, Query, Variable

_TOKENS: Final = "lexico_client_tokens_total"
_NOBODY: Final = "no node shows metrics"
_NO_ENGINE: Final = "no engine with a connector shows metrics"


def _tokens(what: str) -> str:
    return rate(_TOKENS, f'what="{what}"', here=PODS)


_LOADS: Final = (
    Panel(
        "Tokens of prompts",
        "Asked for, matched, and loaded: what lies between matched and loaded failed on its way.",
        "short",
        tuple(Query(_tokens(what), what) for what in ("asked", "matched", "loaded", "offloaded")),
        nothing=_NOBODY,
    ),
    Panel(
        "Loaded part of prompts",
        "What it saves: tokens that were not prefilled.",
        "percentunit",
        (Query(f"{_tokens('loaded')} / {_tokens('asked')}", "loaded"),),
        most=1,
        nothing=_NOBODY,
    ),
    Panel(
        "Seconds of loads and offloads",
        "From the call to its result. A load should be well below the prefill that it replaces.",
        "s",
        quantiles("lexico_client_seconds", by="operation", here=PODS),
        nothing=_NOBODY,
    ),
    Panel(
        "Seconds of decoding",
        "Of each load, by codec: verifying and decoding frames.",
        "s",
        quantiles("lexico_client_decode_seconds", by="codec", here=PODS),
        nothing=_NOBODY,
    ),
    Panel(
        "Bytes",
        "Raw bytes in offloads, frames in loads.",
        "Bps",
        (Query(rate("lexico_client_bytes_total", by="direction", here=PODS), "{{direction}}"),),
        nothing=_NOBODY,
    ),
    Panel(
        "Models, by codec and set",
        "What new pages are coded with. missing: there is no set for what was asked for, and pages "
        "are lossless until one is published (`lexico train --register`).",
        "none",
        (
            Query(
                f"sum by (codec, set) (lexico_client_models{{{PODS}}})",
                "{{codec}}, {{set}}",
            ),
        ),
        stacked=True,
        nothing=_NOBODY,
    ),
    Panel(
        "Seconds of calls",
        "As nodes see them: less what servers count is the network.",
        "s",
        quantiles("lexico_client_call_seconds", 'method=~"match|get|put"', "method", PODS),
        nothing=_NOBODY,
    ),
)

_FAULTS: Final = (
    Panel(
        "Loads that brought less than they could",
        "absent: nothing was stored. Every other reason is a failure, see docs/failures.md.",
        "ops",
        (Query(or_zero(rate("lexico_client_misses_total", by="reason", here=PODS)), "{{reason}}"),),
        stacked=True,
    ),
    Panel(
        "Calls that did not end well",
        "By reason. circuit-open: a server that hung is not asked.",
        "ops",
        (
            Query(
                or_zero(rate("lexico_client_calls_total", 'outcome!="ok"', "outcome", PODS)),
                "{{outcome}}",
            ),
        ),
        stacked=True,
    ),
    Panel(
        "Calls that were made a second time",
        "After a connection was lost, or a server went away.",
        "ops",
        (Query(or_zero(rate("lexico_client_retries_total", here=PODS)), "calls"),),
    ),
    Panel(
        "Published sets that were not taken",
        "By reason: the set is of another model, its bytes are damaged, or it cannot be had. The "
        "node's log names it, and its pages stay lossless.",
        "ops",
        (
            Query(
                or_zero(rate("lexico_client_sets_refused_total", by="reason", here=PODS)),
                "{{reason}}",
            ),
        ),
    ),
)

_ENGINES: Final = (
    Panel(
        "Requests",
        "Of an engine's scheduler, by what became of them: hit and local save prefilling, failed "
        "and unusable are failures, the others are requests that are left alone.",
        "ops",
        (Query(rate("lexico_engine_requests_total", by="outcome", here=PODS), "{{outcome}}"),),
        stacked=True,
        nothing=_NO_ENGINE,
    ),
    Panel(
        "Tokens",
        "Asked for, promised to the scheduler, loaded, and lost: those were promised and computed.",
        "short",
        (Query(rate("lexico_engine_tokens_total", by="what", here=PODS), "{{what}}"),),
        nothing=_NO_ENGINE,
    ),
    Panel(
        "Pages to be stored",
        "dropped: copies have no room, so the service or the network is slower than the engine.",
        "ops",
        (Query(rate("lexico_engine_pages_total", by="outcome", here=PODS), "{{outcome}}"),),
        stacked=True,
        nothing=_NO_ENGINE,
    ),
    Panel(
        "Copies that wait to be stored",
        "Bounded by the connector's staging_bytes.",
        "bytes",
        (Query(f"sum by (pod) (lexico_engine_staged_bytes{{{PODS}}})", "{{pod}}"),),
        nothing=_NO_ENGINE,
    ),
)

DASHBOARD: Final = Dashboard(
    "node",
    "Lexico Offload / Nodes",
    "What nodes see. A node shows it after `lexico_client.metrics.register()`.",
    (
        Variable("namespace", "label_values(lexico_client_seconds_count, namespace)"),
        Variable("pod", f"label_values(lexico_client_seconds_count{{{HERE}}}, pod)"),
    ),
    {"Loads and offloads": _LOADS, "What fails": _FAULTS, "Engines": _ENGINES},
)
