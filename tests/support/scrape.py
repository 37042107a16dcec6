"""What Prometheus reads, as a test looks at it."""

from __future__ import annotations

import urllib.request

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text_of(address: str) -> str:
    """The page at `host:port`."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        content: bytes = answer.read()
    return content.decode()


def samples_of(text: str) -> Samples:
    """Name and labels → number."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float:
    """One number."""
    return samples[name, frozenset(labels.items())]
