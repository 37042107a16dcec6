"""Ingress and encoders: room, queues, pages that fail, and what codes are worth."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.alert import Alert, at_least, grew, share

_FAILED: Final = 'lexico_pages_total{outcome="failed"}'
_HELD: Final = 'lexico_leases_total{outcome="held"}'
_TAKEN: Final = 'lexico_leases_total{outcome="taken"}'
_ERRORS: Final = "lexico_relative_error_ratio"

ALERTS: Final = (
    Alert(
        "LexicoIngressNearlyFull",
        "warning",
        "avg_over_time(lexico_inflight_bytes[15m]) / lexico_inflight_limit_bytes > 0.9",
        "5m",
        "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its room for pages",
        "The next offloads are refused as busy: their prompts are not stored.",
    ),
    Alert(
        "LexicoEncodersBehind",
        "warning",
        "min_over_time(lexico_pages_waiting[15m]) > 0",
        "5m",
        "Pages waited at {{ $labels.instance }} all the time for 15 minutes",
        "More pages come than encoders can take. Offloads take longer, then they are refused.",
    ),
    Alert(
        "LexicoEncodersStalled",
        "critical",
        "min_over_time(lexico_pages_encoding[10m]) > 0"
        " and on (job, instance) sum by (job, instance) (increase(lexico_pages_total[10m])) == 0",
        "2m",
        "Encoders of {{ $labels.instance }} have {{ $value }} pages and give none back",
        "Nothing is stored any more. Loads of what is stored go on.",
    ),
    Alert(
        "LexicoEncodersDying",
        "warning",
        "increase(lexico_encoder_retries_total[1h]) > 5",
        "0m",
        "Encoders died with {{ $value | humanize }} pages of {{ $labels.instance }} in an hour",
        "Each page went to a second encoder. Where that dies too, the offload is lost.",
    ),
    Alert(
        "LexicoPagesFailing",
        "warning",
        f"{share(_FAILED, 'lexico_pages_total', '15m')} > 0.05 and {at_least(5, _FAILED, '15m')}",
        "10m",
        "{{ $value | humanizePercentage }} of the pages in {{ $labels.namespace }} fail in "
        "encoders",
        "They are not stored. Nodes that do not wait for the end of an offload are not told.",
    ),
    Alert(
        "LexicoSetsRefused",
        "warning",
        # Unknown sets are no fault: a node registers its own, and sends the page again.
        grew('lexico_sets_refused_total{reason!="unknown-dictionary"}', "30m"),
        "0m",
        "{{ $labels.instance }} refused a dictionary set: {{ $labels.reason }}",
        "Offloads with this set are lost, all of them.",
    ),
    Alert(
        "LexicoLeasesStuck",
        "warning",
        f"{at_least(5, _HELD, '15m')} unless sum by (namespace) (increase({_TAKEN}[15m])) > 0",
        "5m",
        "For 15 minutes encoders in {{ $labels.namespace }} found every page's lease held",
        "Somebody holds leases, and stores nothing: these pages are not stored.",
    ),
    Alert(
        "LexicoCodesPoor",
        "warning",
        f"histogram_quantile(0.5, sum by (namespace, codec, le) (rate({_ERRORS}_bucket[6h]))) > 0.6"
        f" and {at_least(20, f'{_ERRORS}_count', '6h', 'namespace, codec')}",
        "30m",
        "Codec {{ $labels.codec }} in {{ $labels.namespace }} loses {{ $value | humanizePercentage "
        "}} of the norm of half of its groups",
        "The dictionary set does not fit these texts or this model: answers may differ.",
    ),
)
