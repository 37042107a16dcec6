"""The numbers of a process as messages of Status."""

from __future__ import annotations

from lexico_proto import metrics as m
from lexico_proto.metrics import Family, Metrics
from lexico_proto.v1 import operations_pb2 as pb

_OF_TENANTS = (m.TENANT_BYTES, m.MATCHES, m.MATCH_TOKENS, m.HIT_TOKENS)


class ProcessStatus:
    """What was counted up to one moment. The first label of a tenant's families is its name."""

    def __init__(self, metrics: Metrics) -> None:
        """
        Args:
            metrics: of the process; brought up to date before, where that matters.
        """
        self._counting = metrics.counts
        self._numbers = metrics.snapshot()

    def tenant(self, name: str) -> pb.TenantStatus | None:
        """One tenant's; None where it is counted together with others, or nothing is counted."""
        if not self._counting or name == m.OTHER:
            return None
        if name not in self._names() and m.OTHER in self._names():
            return None  # perhaps it is among the others
        return self._of_tenant(name)

    def tenants(self) -> list[pb.TenantStatus]:
        """Those of each tenant that has its own, by name; then those of all others together."""
        names = self._names()
        last = [m.OTHER] if m.OTHER in names else []
        return [self._of_tenant(name) for name in (*sorted(names - {m.OTHER}), *last)]

    def ingress(self) -> pb.IngressStatus:
        """Of an ingress."""
        one = self._one
        return pb.IngressStatus(
            pages_stored=one(m.PAGES, "stored"),
            pages_present=one(m.PAGES, "present"),
            pages_in_progress=one(m.PAGES, "in-progress"),
            pages_failed=one(m.PAGES, "failed"),
            pages_cancelled=one(m.PAGES, "cancelled"),
            received_bytes=one(m.RECEIVED_BYTES),
            stored_bytes=one(m.STORED_BYTES),
            encoder_retries=one(m.ENCODER_RETRIES),
            inflight_bytes=one(m.INFLIGHT_BYTES),
            inflight_limit_bytes=one(m.INFLIGHT_LIMIT),
            pages_encoding=one(m.PAGES_ENCODING),
            pages_waiting=one(m.PAGES_WAITING),
        )

    def reload(self) -> pb.ReloadStatus:
        """Of a reload server, and its store."""
        one = self._one
        return pb.ReloadStatus(
            matches_all=self._sum(m.MATCHES, 2, "all"),
            matches_some=self._sum(m.MATCHES, 2, "some"),
            matches_none=self._sum(m.MATCHES, 2, "none"),
            match_tokens=self._sum(m.MATCH_TOKENS),
            hit_tokens=self._sum(m.HIT_TOKENS),
            sent_pages=one(m.SENT_PAGES),
            sent_bytes=one(m.SENT_BYTES),
            misses_absent=one(m.MISSES, "absent"),
            misses_damaged=one(m.MISSES, "damaged"),
            misses_newer=one(m.MISSES, "newer"),
            streams=one(m.STREAMS),
            streams_limit=one(m.STREAMS_LIMIT),
            store_calls=one(m.STORE_CALLS),
            buffered_bytes=one(m.BUFFERED_BYTES),
            buffered_limit_bytes=one(m.BUFFERED_LIMIT),
            store=self._store(),
            sets_found=one(m.SET_SEARCHES, "found"),
            sets_missing=one(m.SET_SEARCHES, "none"),
        )

    def _store(self) -> pb.StoreStatus:
        store = pb.StoreStatus(up=bool(self._one(m.STORE_UP)))
        if m.STORE_BYTES in self._numbers:
            numbers = pb.StoreNumbers(
                used_bytes=self._one(m.STORE_BYTES),
                max_bytes=self._one(m.STORE_LIMIT),
                evictions=self._one(m.STORE_EVICTIONS),
                expiries=self._one(m.STORE_EXPIRIES),
                connections=self._one(m.STORE_CONNECTIONS),
            )
            store.numbers.CopyFrom(numbers)
        return store

    def _names(self) -> set[str]:
        found = (self._numbers.get(family, {}) for family in _OF_TENANTS)
        return {values[0] for numbers in found for values in numbers}

    def _of_tenant(self, name: str) -> pb.TenantStatus:
        return pb.TenantStatus(
            tenant=name,
            received_bytes=self._one(m.TENANT_BYTES, name, "received"),
            stored_bytes=self._one(m.TENANT_BYTES, name, "stored"),
            sent_bytes=self._one(m.TENANT_BYTES, name, "sent"),
            matches=self._sum(m.MATCHES, 0, name),
            match_tokens=self._sum(m.MATCH_TOKENS, 0, name),
            hit_tokens=self._sum(m.HIT_TOKENS, 0, name),
        )

    def _one(self, family: Family, *values: str) -> int:
        return int(self._numbers.get(family, {}).get(values, 0))

    def _sum(self, family: Family, label: int = 0, value: str | None = None) -> int:
        """Over all series, or those where a label has one value."""
        numbers = self._numbers.get(family, {})
        return int(sum(n for v, n in numbers.items() if value is None or v[label] == value))
