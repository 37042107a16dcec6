"""Telemetry of one process, from its start to its end."""

from __future__ import annotations

from lexico_codec.formats import own_formats
from lexico_proto import tracing
from lexico_proto.metrics import BUILD_INFO, PROCESS
from lexico_services.telemetry.config import INGRESS, TelemetryConfig
from lexico_services.telemetry.exposition import Exposition


class Telemetry:
    """Counts, shows and traces for this process. To be made before anything that counts."""

    def __init__(
        self, config: TelemetryConfig, part: str, at: int = INGRESS, *, spans: bool = True
    ) -> None:
        """
        Args:
            config: what, and where.
            part: one of `PARTS`.
            at: which of the ports, see `MetricsConfig.at`.
            spans: whether it makes any.

        Raises:
            ConfigurationError: a package that it takes is not installed.
        """
        metrics = config.metrics
        PROCESS.configure(max_open=metrics.max_tenants, count=metrics.count)
        PROCESS.gauge(BUILD_INFO, own_formats().release, part).set(1)
        if spans:
            tracing.start(config.tracing, part)
        where = metrics.at(at)
        self._host = where[0] if where else ""
        self._exposition = None if where is None else Exposition(PROCESS, *where)

    def address(self) -> tuple[str, int] | None:
        """Where metrics are shown; None where they are not, or their port is not free yet."""
        port = None if self._exposition is None else self._exposition.port()
        return None if port is None else (self._host, port)

    def close(self) -> None:
        """Ends it: what was not sent is sent, if that is quick. Idempotent."""
        if self._exposition is not None:
            self._exposition.close()
        tracing.stop()
