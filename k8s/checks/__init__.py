"""Checks of everything that is rendered: `python -m k8s.checks`."""
