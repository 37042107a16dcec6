"""What a part of the service asks of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from lexico_services.settings import Settings
from lexico_store.opening import embedded_maxmemory

PLASMA_FACTOR = 2.5
"""Shared memory over admitted bytes: pages being freed still lie there, and Ray would spill to disk
in silence.
"""


@dataclass(frozen=True)
class Needs:
    """Of one command with its settings."""

    shared_bytes: int
    """Of the memory that processes share, for pages in flight; 0 where no Ray is started."""
    store_bytes: int
    """That an embedded store may grow to; 0 where there is none."""
    encoder_threads: int
    """Of all encoders together as the settings give them; 0 where they follow the cores."""

    @classmethod
    def of(cls, settings: Settings, *, ray: bool, store: bool) -> Needs:
        """
        Args:
            settings: of the command.
            ray: whether it runs encoders.
            store: whether it may start an embedded store.
        """
        url = settings.value("store.url") or ""
        own_ray = ray and not settings.ray.address
        encoder = settings.encoder("unix:///")
        return cls(
            shared_bytes=shared_bytes(settings) if own_ray else 0,
            store_bytes=embedded_maxmemory(url) if store and url.startswith("embedded:") else 0,
            encoder_threads=encoder.threads * encoder.max_replicas if ray else 0,
        )


def shared_bytes(settings: Settings) -> int:
    """Of Ray's object store, which holds what the ingress admits, and more."""
    admitted = int(settings.offload.max_inflight_bytes * PLASMA_FACTOR)
    return max(settings.ray.object_store_bytes, admitted)
