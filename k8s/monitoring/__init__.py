"""Alerts and dashboards, written once: `python -m k8s.monitoring` makes the files of them."""
