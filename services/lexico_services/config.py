"""Settings of the gRPC services."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields
from pathlib import Path

from lexico_proto.errors import ConfigurationError
from lexico_proto.limits import MAX_CALL_PAGES, MAX_FRAME_BYTES
from lexico_services.process import address


@dataclass(frozen=True)
class ListenConfig:
    """Where a server listens and whom it serves."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port."""
    token_file: Path | None = None
    """Lines of `tenant:token`. Without it every caller is the tenant `default`."""
    allow_anonymous: bool = False
    """Lets a server without a token file listen beyond loopback."""
    drain_s: float = 15.0
    """Seconds that running calls are given at shutdown."""
    start_s: float = 120.0
    """Seconds that ingress and encoders, and then the reload server, are given to start."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigurationError(f"port {self.port} is outside 0..65535")
        if not 0 <= self.drain_s < math.inf:
            raise ConfigurationError(f"drain time {self.drain_s}: give 0 or more seconds")
        if not 0 < self.start_s < math.inf:
            raise ConfigurationError(f"start time {self.start_s}: give more than 0 seconds")
        if self.token_file is None and not self.allow_anonymous and not _is_loopback(self.host):
            raise ConfigurationError(
                f"listening on {self.host} without tokens: anyone there could use the caches. "
                "Give --token-file, or --allow-anonymous where a network policy keeps others out"
            )

    @property
    def target(self) -> str:
        """`host:port` as gRPC takes it."""
        return address(self.host, self.port)


@dataclass(frozen=True)
class OffloadConfig:
    """Bounds of the ingress."""

    max_inflight_bytes: int = 384 << 20
    """Raw page bytes held for all callers together; a Put over it is refused before its first byte.
    """
    pages_ahead: int = 2
    """Pages of one Put that wait for an encoder while the next is received."""
    idle_s: float = 20.0
    """Seconds without a byte after which an upload is given up."""

    def __post_init__(self) -> None:
        if self.max_inflight_bytes < 1 or self.pages_ahead < 1 or not self.idle_s > 0:
            raise ConfigurationError("max_inflight_bytes, pages_ahead and idle_s must be positive")


@dataclass(frozen=True)
class ReloadConfig:
    """Bounds of the reload server. Every one is positive and finite.

    Memory: `max_buffered_bytes` for frames and dictionary sets, about 3 MiB for each stream for the
    message that is under way, and one set that is being checked (five times its bytes).

    Raises:
        ConfigurationError: a value that cannot be used, naming its field.
    """

    page_ttl_s: float = 24 * 3600.0
    """Seconds a page lives after it is read."""
    max_streams: int = 64
    """Get, Fetch and Register streams served at a time; one more is refused at once."""
    max_stream_s: float = 120.0
    """Seconds that one of them may take in all, also where its caller does not read."""
    max_calls: int = 256
    """Match and List calls at a time; one more is refused at once."""
    match_timeout_s: float = 2.0
    """Seconds that a Match waits for the store: it stands before a prefill."""
    store_threads: int = 8
    """Store calls under way at a time."""
    max_buffered_bytes: int = 512 << 20
    """Bytes of frames and dictionary sets held for all streams together; what does not fit waits.
    """
    max_pages: int = MAX_CALL_PAGES
    """Pages in one Match or Get."""
    max_dictionary_bytes: int = 64 << 20
    """Largest dictionary set that may be registered."""
    max_dictionaries: int = 64
    """Dictionary sets that one tenant may register."""
    max_dictionary_bytes_per_tenant: int = 256 << 20
    """Bytes of the dictionary sets that one tenant may register."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{field.name} is {value}: give a positive number")
        needed = max(MAX_FRAME_BYTES, self.max_dictionary_bytes)
        if self.max_buffered_bytes < needed:
            raise ConfigurationError(
                f"max_buffered_bytes is {self.max_buffered_bytes}: one frame or dictionary set "
                f"may need {needed}"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
