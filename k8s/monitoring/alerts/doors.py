"""Who comes in: certificates, tokens, and what servers refuse."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.alert import Alert, at_least, grew, share

_LEFT: Final = "lexico_certificate_end_timestamp_seconds - time()"
_ENDS: Final = "The certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}"
_UNKNOWN: Final = 'lexico_calls_total{outcome=~"unauthenticated|permission-denied"}'

ALERTS: Final = (
    Alert(
        "LexicoCertificateEnding",
        "critical",
        f"{_LEFT} < 86400",
        "5m",
        _ENDS,
        "From then on no node connects, and every load is a miss.",
    ),
    Alert(
        "LexicoCertificateEnding",
        "warning",
        f"{_LEFT} < 7 * 86400",
        "1h",
        _ENDS,
        "Whoever renews it should have done so.",
    ),
    Alert(
        "LexicoFilesRefused",
        "warning",
        grew('lexico_file_reads_total{outcome="refused"}', "1h"),
        "0m",
        "{{ $labels.instance }} cannot use a new file of tokens, certificates, keys or policies",
        "What was in force before stays in force: a token that was taken out still opens the door.",
    ),
    Alert(
        "LexicoCallersRefused",
        "warning",
        f"{share(_UNKNOWN, 'lexico_calls_total', '15m')} > 0.2 and {at_least(20, _UNKNOWN, '15m')}",
        "10m",
        "{{ $value | humanizePercentage }} of the calls in {{ $labels.namespace }} have no right "
        "to be made",
        "Nodes with a token or certificate that is not known compute every prompt.",
    ),
)
