"""Ingress and encoders: the way of a page into the store."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.dashboards.queries import (
    HERE,
    NAMESPACE,
    PODS,
    PROCESS,
    or_zero,
    quantile,
    quantiles,
    rate,
)
from k8s.monitoring.grafana import Dashboard, Panel, Query, Variable


def _counted(title: str, what: str, metric: str, by: str) -> Panel:
    expr = or_zero(rate(metric, by=by, here=PODS))
    return Panel(title, what, "ops", (Query(expr, f"{{{{{by}}}}}"),), width=8)


_ROOM: Final = (
    Panel(
        "Room for pages in flight",
        "Part of what the ingress may hold. At 1 the next Put is refused as busy.",
        "percentunit",
        (
            Query(
                f"lexico_inflight_bytes{{{PODS}}} / lexico_inflight_limit_bytes{{{PODS}}}", PROCESS
            ),
        ),
        most=1,
        steps=((None, "green"), (0.9, "red")),
    ),
    Panel(
        "Pages with encoders, and pages that wait",
        "Pages that always wait mean that encoders cannot keep up.",
        "none",
        (
            Query(f"lexico_pages_encoding{{{PODS}}}", f"with encoders {PROCESS}"),
            Query(f"lexico_pages_waiting{{{PODS}}}", f"waiting {PROCESS}"),
        ),
    ),
)

_SLICES: Final = (
    _counted(
        "Pages that came in slices",
        "Of ranks of a split model, by what became of them. expired: slices were missing, as where "
        "ranks send to different ingresses.",
        "lexico_sliced_pages_total",
        "outcome",
    ),
    Panel(
        "Pages that lack slices",
        "They wait for those of other ranks. Always many means that a rank is behind, or gone.",
        "none",
        (Query(f"lexico_sliced_pages_waiting{{{PODS}}}", PROCESS),),
        width=8,
    ),
    Panel(
        "Bytes of slices that wait",
        "Part of the room for pages in flight.",
        "bytes",
        (Query(f"lexico_sliced_bytes{{{PODS}}}", PROCESS),),
        width=8,
    ),
)

_PAGES: Final = (
    Panel(
        "Pages",
        "By what became of them. present: was stored already. in-progress: another encoder has it.",
        "ops",
        (Query(rate("lexico_pages_total", by="outcome", here=PODS), "{{outcome}}"),),
        stacked=True,
    ),
    Panel(
        "Seconds of a page, nine in ten",
        "By stage: receive is the node's network, place shared memory, turn the wait for encoders, "
        "encoder all of encoding, commit the store within it.",
        "s",
        (Query(quantile(0.9, "lexico_page_seconds", by="stage", here=PODS), "{{stage}}"),),
    ),
    Panel(
        "Seconds of encoding",
        "Codes and frames of a page that was stored, by codec.",
        "s",
        quantiles("lexico_encode_seconds", by="codec", here=PODS),
    ),
    Panel(
        "Seconds of a Put",
        "From its first byte to the answer.",
        "s",
        quantiles("lexico_call_seconds", 'method="put"', here=PODS),
    ),
)

_CODES: Final = (
    Panel(
        "Stored bytes of raw bytes",
        "How small each codec makes a page.",
        "percentunit",
        (
            Query(
                rate("lexico_coded_bytes_total", 'form="stored"', "codec", PODS)
                + " / "
                + rate("lexico_coded_bytes_total", 'form="raw"', "codec", PODS),
                "{{codec}}",
            ),
        ),
        width=8,
    ),
    Panel(
        "Relative error of codes",
        "Of one page in many (`encoder.error_every`), half of the groups and nine in ten. It rises "
        "where texts are not like those that the set was made from.",
        "percentunit",
        tuple(
            Query(
                quantile(part, "lexico_relative_error_ratio", by="codec", here=PODS),
                f"{{{{codec}}}} {told}",
            )
            for part, told in ((0.5, "p50"), (0.9, "p90"))
        ),
        width=8,
        nothing="none measured",
    ),
    Panel(
        "Tokens stored exactly",
        "Of lexico-residual: tokens like nothing that its set was made from, a count for each "
        "layer group.",
        "ops",
        (Query(or_zero(rate("lexico_exact_tokens_total", here=PODS)), "tokens"),),
        width=8,
    ),
)

_FAULTS: Final = (
    _counted(
        "Pages that failed",
        "By reason. busy is a full store, or a full queue.",
        "lexico_page_failures_total",
        "reason",
    ),
    _counted(
        "Dictionary sets that were refused",
        "unknown-dictionary is the first page of a set: its node registers it then.",
        "lexico_sets_refused_total",
        "reason",
    ),
    _counted(
        "Leases",
        "held: another encoder works on the same page. Only held and never taken means that leases "
        "are stuck.",
        "lexico_leases_total",
        "outcome",
    ),
    Panel(
        "Encoders that died with a page",
        "The page was given to a second one.",
        "ops",
        (Query(or_zero(rate("lexico_encoder_retries_total", here=PODS)), "pages"),),
    ),
    Panel(
        "Commands sent to the store again",
        "By encoders.",
        "ops",
        (Query(or_zero(rate("lexico_store_retries_total", here=PODS)), "commands"),),
    ),
)

DASHBOARD: Final = Dashboard(
    "encoder",
    "Lexico Offload / Ingress and encoders",
    "The way of a page into the store. Encoders have no port: the ingress shows their numbers.",
    (NAMESPACE, Variable("pod", f"label_values(lexico_inflight_bytes{{{HERE}}}, pod)")),
    {
        "Room": _ROOM,
        "Pages": _PAGES,
        "Slices": _SLICES,
        "Codes": _CODES,
        "What fails": _FAULTS,
    },
)
