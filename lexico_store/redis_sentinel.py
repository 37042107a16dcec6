"""The primary of a service that sentinels watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis
from redis.connection import ConnectionPool
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from lexico_store.address import Address
from lexico_store.findings import Finding, Level
from lexico_store.redis_exchange import Unit
from lexico_store.redis_look import look_at_server
from lexico_store.redis_look_sentinel import look_at_sentinels
from lexico_store.redis_pool import Remembering, connection_options, transport_options
from lexico_store.redis_servers import Servers
from lexico_store.settings import StoreSettings

_SENTINEL_SHARE: Final = 0.2
"""Of a call's time, what one sentinel gets to answer: a second one must still be able to."""


class SentinelServers(Servers):
    """The primary, whichever it is. Every new connection asks a sentinel for it."""

    fails_over = True

    def __init__(self, address: Address, settings: StoreSettings) -> None:
        super().__init__(settings)
        share = settings.timeout_s * _SENTINEL_SHARE
        times = transport_options(address, share, min(settings.connect_timeout_s, share))
        login = {
            "username": address.options.get("sentinel_username"),
            "password": address.options.get("sentinel_password"),
        }
        options: dict[str, Any] = {**times, **login, "protocol": 2, "ssl": address.tls}
        self._service = address.service
        self._sentinels = _Sentinels(list(address.nodes), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._pool: ConnectionPool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            address.service,
            self._sentinels,
            connection_class=_TlsConnection if address.tls else _TcpConnection,
            **connection_options(address, settings),
        )

    def pool_for(self, unit: Unit) -> redis.ConnectionPool:
        return self._pool

    def look(self) -> list[Finding]:
        findings = look_at_sentinels(self._sentinels.sentinels, self._service)
        if any(each.level is Level.REFUSED for each in findings):
            return findings  # none of them names the primary
        return findings + look_at_server(self._pool, self._timeout_s, cluster=False)

    def primaries(self) -> Sequence[redis.ConnectionPool]:
        return [self._pool]

    def close(self) -> None:
        self._pool.disconnect()
        for each in self._sentinels.sentinels:
            each.close()


class _Sentinels(Sentinel):
    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            return super().discover_master(service_name)  # type: ignore[no-any-return,no-untyped-call]
        except MasterNotFoundError:
            # Not redis-py's text: before 8 it had the sentinels' password in it.
            raise MasterNotFoundError(
                f"no sentinel names a primary of {service_name!r} that is up"
            ) from None


class _TcpConnection(Remembering, SentinelManagedConnection):
    pass


class _TlsConnection(Remembering, SentinelManagedSSLConnection):
    pass
