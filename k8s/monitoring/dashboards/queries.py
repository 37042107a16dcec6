"""Queries that several panels are made of. All of them look at the chosen namespaces alone."""

from __future__ import annotations

from typing import Final

from k8s.monitoring.grafana import Query, Variable

PROCESS: Final = "{{pod}} {{instance}}"
"""Legend of a process, in Kubernetes and elsewhere."""
NAMESPACE: Final = Variable("namespace", "label_values(lexico_build_info, namespace)")
HERE: Final = 'namespace=~"$namespace"'
PODS: Final = f'{HERE}, pod=~"$pod"'


def rate(metric: str, labels: str = "", by: str = "", here: str = HERE) -> str:
    """Growth of a counter a second.

    Args:
        metric: its name.
        labels: further matchers.
        by: labels that are told apart.
        here: matchers of the choices above the panels.
    """
    matchers = ", ".join(each for each in (labels, here) if each)
    told = f" by ({by})" if by else ""
    return f"sum{told} (rate({metric}{{{matchers}}}[$__rate_interval]))"


def or_zero(expr: str) -> str:
    """What is counted once it occurs is 0 before that, and not absent."""
    return f"{expr} or on () vector(0)"


def quantile(part: float, metric: str, labels: str = "", by: str = "", here: str = HERE) -> str:
    """Of a histogram; `by` as in `rate`."""
    told = f"le, {by}" if by else "le"
    return f"histogram_quantile({part}, {rate(f'{metric}_bucket', labels, told, here)})"


def quantiles(metric: str, labels: str = "", by: str = "", here: str = HERE) -> tuple[Query, ...]:
    """The half, and 99 in 100."""
    name = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(quantile(part, metric, labels, by, here), f"{name}{told}")
        for part, told in ((0.5, "p50"), (0.99, "p99"))
    )
