"""Processes: whether they are there, are seen, and stay."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.alert import Alert

ALERTS: Final = (
    Alert(
        "LexicoMetricsAbsent",
        "warning",
        "absent(lexico_build_info)",
        "10m",
        "Prometheus sees no process of Lexico Offload",
        "No alert of Lexico Offload but this one can fire, and its dashboards are empty.",
    ),
    Alert(
        "LexicoScrapeFailing",
        "warning",
        # Ours by what it showed before, so that no name of a job is needed.
        "up == 0 and on (job, instance) max_over_time(lexico_build_info[1d])",
        "5m",
        "{{ $labels.job }} {{ $labels.instance }} does not answer Prometheus",
        "The process is gone, is stuck, or cannot be reached on its port for metrics.",
    ),
    Alert(
        "LexicoPartGone",
        "critical",
        "group by (namespace, part) "
        '(max_over_time(lexico_build_info{part=~"ingress|reload-server"}[1d]))'
        " unless group by (namespace, part) (lexico_build_info)",
        "3m",
        "No {{ $labels.part }} is left in {{ $labels.namespace }}",
        "Without reload servers every load is a miss; without an ingress every offload is lost.",
    ),
    Alert(
        "LexicoRestarting",
        "warning",
        "changes(process_start_time_seconds[30m]) > 2 and on (job, instance) lexico_build_info",
        "0m",
        "{{ $labels.job }} {{ $labels.instance }} began {{ $value }} times anew in 30 minutes",
        "Calls that ran at the time were lost, and nodes computed their prompts.",
    ),
)
