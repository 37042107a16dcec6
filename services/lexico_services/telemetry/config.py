"""Settings of metrics and traces together."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Final

from lexico_proto import tracing
from lexico_proto.counters import MAX_OPEN
from lexico_proto.errors import ConfigurationError
from lexico_proto.tracing import TracingConfig
from lexico_services.process import take_port

INGRESS: Final = 0
RELOAD_BESIDE: Final = 1
"""Of a reload server that `lexico serve` starts."""
SERVICE: Final = 2
"""What is added to the port of `metrics.address`, by part: `lexico serve` is three processes."""

_MOST: Final = 1000
_NEEDED: Final = "prometheus_client"


@dataclass(frozen=True)
class MetricsConfig:
    """How metrics are counted and shown."""

    address: str | None = None
    """Where Prometheus finds them, such as `127.0.0.1:9464`; none: nowhere. `serve` takes two ports
    more."""
    count: bool = True
    """Whether anything is counted; off is for measuring what counting costs."""
    max_tenants: int = MAX_OPEN
    """Tenants with series of their own in each process; all others are counted as `other`."""

    def __post_init__(self) -> None:
        if self.address is not None:
            self.at(SERVICE)
        if not 0 <= self.max_tenants <= _MOST:
            raise ConfigurationError(f"max_tenants is {self.max_tenants}: give 0 to {_MOST}")

    def at(self, part: int = INGRESS) -> tuple[str, int] | None:
        """Host and port of a part; port 0 takes a free one. None where metrics are not shown.

        Args:
            part: `INGRESS`, also for a reload server alone, `RELOAD_BESIDE` or `SERVICE`.
        """
        if self.address is None:
            return None
        host, _, text = self.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (host and text.isascii() and text.isdecimal() and int(text) + SERVICE < 1 << 16):
            raise ConfigurationError(
                f"metrics: address is {self.address!r}: give HOST:PORT, such as 127.0.0.1:9464"
            )
        port = int(text)
        return host, port + part if port else 0


@dataclass(frozen=True)
class TelemetryConfig:
    """What a process tells, and where."""

    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    log_level: str = "warning"
    """debug, info, warning or error, where a process has no log of its own: in Ray's workers, whose
    error files Ray keeps."""
    log_format: str = "text"
    """text or json."""

    def check(self, *parts: int) -> None:
        """Whether what it takes is installed, and the ports of these parts are free.

        Args:
            parts: as for `MetricsConfig.at`.

        Raises:
            ConfigurationError: it is not, or one is taken.
        """
        if self.metrics.address is not None and importlib.util.find_spec(_NEEDED) is None:
            raise ConfigurationError(
                "metrics.address needs prometheus_client: pip install 'lexico-offload[reload]'"
            )
        for part in parts:
            if (where := self.metrics.at(part)) is not None:
                take_port(*where)
        tracing.check(self.tracing)


NOTHING: Final = TelemetryConfig()
"""Counted, and shown nowhere."""
