"""All alerts, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from k8s.monitoring.alerts import calls, doors, encoders, pods, processes, store
from k8s.monitoring.alerts.alert import Alert

GROUPS: Final[Mapping[str, Sequence[Alert]]] = {
    "lexico-processes": processes.ALERTS,
    "lexico-doors": doors.ALERTS,
    "lexico-calls": calls.ALERTS,
    "lexico-encoders": encoders.ALERTS,
    "lexico-store": store.ALERTS,
    "lexico-pods": pods.ALERTS,
}
"""Name of a group → its alerts."""
ALERTS: Final = tuple(alert for group in GROUPS.values() for alert in group)
"""All of them."""
NAMES: Final = tuple(dict.fromkeys(alert.name for alert in ALERTS))
"""Each name once: an alert may have two severities, and one runbook."""
