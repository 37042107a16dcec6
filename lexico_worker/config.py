"""Settings of the encoders."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lexico_proto.errors import ConfigurationError
from lexico_proto.tracing import TracingConfig
from lexico_store.settings import StoreSettings


@dataclass(frozen=True)
class EncoderConfig:
    """How many encoders run and how much each takes on."""

    store_url: str = field(repr=False)
    """Page store that encoders commit to; one that other processes reach (not memory://). It may
    hold a password, so it is never shown.
    """
    store: StoreSettings = field(default_factory=StoreSettings)
    """How encoders speak to the store."""
    page_ttl_s: float = 24 * 3600.0
    """Seconds a page lives after it is written or last read."""
    lease_ttl_s: float = 120.0
    """Seconds after which another encoder may take a page from one that does not go on: a lease is
    renewed between layer groups, so a group may take nine tenths of it."""
    min_replicas: int = 1
    """Encoders kept running."""
    max_replicas: int = 1
    """Most encoders; more than `min_replicas` makes Serve scale by pages that wait and bytes in
    flight."""
    upscale_delay_s: float = 2.0
    """Seconds that more encoders must be wanted before they are started."""
    downscale_delay_s: float = 60.0
    """Seconds that fewer encoders must be wanted before some are ended."""
    ongoing_per_replica: int = 2
    """Pages one encoder holds at a time: one being encoded, one being fetched or committed."""
    queued_per_handle: int = 64
    """Pages that wait at the ingress for an encoder; beyond that the caller is told to come back.
    """
    num_cpus: float = 0.5
    """Ray's CPU share of one encoder; fractions leave room for scaling on small nodes."""
    num_gpus: float | None = None
    """Ray's GPU share of one encoder; 0 encodes on the CPU. None: one GPU where Ray has any, else
    the CPU.
    """
    threads: int = 0
    """Torch threads of one encoder; 0 shares the cores, by CPU quota, among `max_replicas`."""
    dictionary_cache_bytes: int = 1 << 30
    """Dictionary sets that one encoder keeps in memory."""
    error_every: int = 256
    """Pages from one whose coding error is measured to the next: a layer group of it is decoded
    again. 0 for none."""
    log_level: str = "warning"
    """What an encoder logs, to the error file that Ray keeps of its process."""
    log_format: str = "text"
    """How: text or json."""
    count: bool = True
    """Whether it counts anything."""
    tracing: TracingConfig = field(default_factory=TracingConfig)
    """Where its spans go."""

    def __post_init__(self) -> None:
        if self.store_url.startswith(("memory:", "embedded:")):
            raise ConfigurationError(
                f"store {self.store_url}: encoders are processes of their own; give a URL that "
                "they reach, such as unix:///path or redis://host"
            )
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigurationError("encoders: need 1 <= min_replicas <= max_replicas")
        for name in ("page_ttl_s", "lease_ttl_s", "ongoing_per_replica", "queued_per_handle"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"encoders: {name} must be positive")
        for name in (
            "num_cpus",
            "threads",
            "dictionary_cache_bytes",
            "error_every",
            "upscale_delay_s",
            "downscale_delay_s",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"encoders: {name} must not be negative")
        if self.num_gpus is not None and not _is_fraction(self.num_gpus):
            raise ConfigurationError(
                "encoders: num_gpus must be 0, a fraction of one GPU, or a whole number of them"
            )


def _is_fraction(gpus: float) -> bool:
    return 0 <= gpus < math.inf and (gpus <= 1 or gpus == int(gpus))
