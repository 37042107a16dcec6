"""From a URL of Redis to the way in which commands reach it."""

from __future__ import annotations

from lexico_store.address import Address
from lexico_store.redis_cluster import ClusterServers
from lexico_store.redis_pool import build_pool
from lexico_store.redis_sentinel import SentinelServers
from lexico_store.redis_servers import OneServer, Servers
from lexico_store.settings import StoreSettings


def servers_at(address: Address, settings: StoreSettings) -> Servers:
    """The servers of an address whose scheme speaks Redis. Connects to nothing yet."""
    if address.scheme.endswith("+cluster"):
        return ClusterServers(address, settings)
    if address.scheme.endswith("+sentinel"):
        return SentinelServers(address, settings)
    return OneServer(build_pool(address, settings), settings)
