"""All dashboards."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.dashboards import encoder, fleet, node, store, tenant

DASHBOARDS: Final = (
    fleet.DASHBOARD,
    tenant.DASHBOARD,
    encoder.DASHBOARD,
    store.DASHBOARD,
    node.DASHBOARD,
)
"""In the order in which they are looked at."""
