"""How a store is spoken to. Where it is, is its URL."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lexico_proto.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Bounds in time and number of one store handle.

    Raises:
        ConfigurationError: a value that is not positive and finite.
    """

    timeout_s: float = 5.0
    """Longest wait, in seconds, for one send or receive, and for a free connection."""
    connect_timeout_s: float = 2.0
    """Longest wait, in seconds, for a connection to be made."""
    probe_every_s: float = 1.0
    """Seconds between two tries of a server that was silent; other calls fail at once meanwhile. 0
    has each call try."""
    max_connections: int = 64
    """Connections of one handle; more threads than this wait for a free one."""
    start_timeout_s: float = 10.0
    """Longest wait, in seconds, for an embedded server to answer its first PING."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "connect_timeout_s", "start_timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} is {value}: give a positive number of seconds")
        if not 0 <= self.probe_every_s < math.inf:
            raise ConfigurationError(
                f"probe_every_s is {self.probe_every_s}: give seconds, or 0 for no breaker"
            )
        if self.max_connections < 1:
            raise ConfigurationError(f"max_connections is {self.max_connections}: give 1 or more")
