"""Settings of the gRPC services."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from lexico_proto.errors import ConfigurationError
from lexico_proto.limits import MAX_CALL_PAGES, MAX_FRAME_BYTES
from lexico_services.door_config import JwtConfig, TlsConfig
from lexico_services.process import address, split_address

MIN_AGE_S: Final = 1.0
MAX_AGE_S: Final = 7 * 24 * 3600.0
"""Bounds of the age of a connection: gRPC counts it in milliseconds of 32 bits."""


@dataclass(frozen=True)
class ListenConfig:
    """Where a server listens and whom it serves."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port."""
    token_file: Path | None = None
    """Lines of `tenant:token` or `tenant:token:roles`. Read again when it changes."""
    allow_anonymous: bool = False
    """Lets a server that cannot tell callers apart listen beyond loopback: all are one tenant."""
    policy_file: Path | None = None
    """Lifetimes and quotas by tenant, read again when it changes. Without it all have the same."""
    drain_s: float = 15.0
    """Seconds that running calls are given at shutdown."""
    connection_age_s: float = 120.0
    """Seconds, a tenth more or less, after which a connection takes no new call: clients look up
    who serves, and connect again. Calls under way end on it. 0: connections stay."""
    start_s: float = 120.0
    """Seconds that ingress and encoders, and then the reload server, are given to start."""
    health_address: str | None = None
    """HOST:PORT for standard gRPC health alone, without TLS and tokens, for probes; port 0 takes a
    free one. None: no such port."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    """How the port is secured."""
    jwt: JwtConfig = field(default_factory=JwtConfig)
    """Whose signed tokens count."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigurationError(f"port {self.port} is outside 0..65535")
        if not 0 <= self.drain_s < math.inf:
            raise ConfigurationError(f"drain time {self.drain_s}: give 0 or more seconds")
        if not (self.connection_age_s == 0 or MIN_AGE_S <= self.connection_age_s <= MAX_AGE_S):
            raise ConfigurationError(
                f"connection age {self.connection_age_s}: give {MIN_AGE_S:g} to {MAX_AGE_S:g} "
                "seconds, or 0 for connections that stay"
            )
        if not 0 < self.start_s < math.inf:
            raise ConfigurationError(f"start time {self.start_s}: give more than 0 seconds")
        if self.health_address is not None:
            split_address(self.health_address)
        if not (self.knows_callers or self.allow_anonymous or self.is_loopback):
            raise ConfigurationError(
                f"listening on {self.host} without tokens: anyone there could use the caches. "
                "Give --token-file, keys in [jwt] or tenants_file in [tls], or --allow-anonymous "
                "where a network policy keeps others out"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return _is_loopback(self.host)

    @property
    def sends_tokens(self) -> bool:
        """Whether callers may show tokens."""
        return self.token_file is not None or self.jwt.keys is not None

    @property
    def knows_callers(self) -> bool:
        """Whether callers must say who they are; else each is the tenant `default`."""
        return self.sends_tokens or self.tls.tenants_file is not None

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
    min_bytes_per_s: int = 64 << 10
    """What a caller must send on average within each page, after `idle_s`: slower ones would hold
    room for ever."""
    max_streams: int = 256
    """Puts under way at a time; one more is refused at once."""
    max_encoding: int = 16
    """Pages with encoders at a time; the others wait at the ingress, tenants in turn."""
    slice_wait_s: float = 30.0
    """Seconds that slices of a page wait for those of other ranks, from the first one on."""
    drain_file: Path | None = None
    """Once this file is touched, the ingress takes no new call and lets its calls end, for the
    preStop of a pod in which Ray runs it."""

    def __post_init__(self) -> None:
        if self.max_inflight_bytes < 1 or self.pages_ahead < 1 or not self.idle_s > 0:
            raise ConfigurationError("max_inflight_bytes, pages_ahead and idle_s must be positive")
        if self.min_bytes_per_s < 1 or self.max_streams < 1:
            raise ConfigurationError("min_bytes_per_s and max_streams must be positive")
        if self.max_encoding < 1:
            raise ConfigurationError(f"max_encoding is {self.max_encoding}: give 1 or more")
        if not 0 < self.slice_wait_s < math.inf:
            raise ConfigurationError(
                f"slice_wait_s is {self.slice_wait_s}: give a positive number of seconds"
            )


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
        for each in fields(self):
            value = getattr(self, each.name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{each.name} is {value}: give a positive number")
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
