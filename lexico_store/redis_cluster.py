"""Redis Cluster: which node has which slot, and who to ask when that has changed.

redis-py's own cluster client is not used: it sends what a pipeline lost once more command by
command, each with its own time-out (a Match of 4,000 pages would wait hours), and a MULTI on a slot
that is moving never arrives, because it does not say ASKING.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError

from lexico_store.address import Address
from lexico_store.deadline import remaining_s, within
from lexico_store.findings import Finding
from lexico_store.redis_errors import is_lost
from lexico_store.redis_exchange import Exchange, Unit
from lexico_store.redis_look import look_at_server
from lexico_store.redis_pool import pool_of
from lexico_store.redis_servers import Redirection, Servers
from lexico_store.settings import StoreSettings

Node = tuple[str, int]
"""Host and port."""

_MAP_SHARE: Final = 0.2
"""Of a call's time, what one node gets to show its map of the slots."""
_MAP_LASTS_S: Final = 0.1
"""A map is not asked for again within this time, whatever has been lost."""


class ClusterServers(Servers):
    """The primaries of a cluster, each with its pool."""

    fails_over = True

    def __init__(self, address: Address, settings: StoreSettings) -> None:
        super().__init__(settings)
        self._address = address
        self._settings = settings
        self._seeds: tuple[Node, ...] = address.nodes
        self._lock = threading.Lock()
        self._mapping = threading.Lock()
        self._pools: dict[Node, redis.ConnectionPool] = {}
        self._owners: dict[int, Node] = {}
        """Slot → primary."""
        self._primaries: tuple[Node, ...] = ()
        self._doubted = True
        self._mapped_at = 0.0

    def pool_for(self, unit: Unit) -> redis.ConnectionPool:
        if self._doubted:
            self._map()
        name = unit.name
        if name is None:
            return self._pool(random.choice(self._primaries))
        slot = key_slot(name.encode())
        owner = self._owners.get(slot)
        if owner is None:
            self.doubt()
            raise ClusterDownError(f"no node has slot {slot}")
        return self._pool(owner)

    def redirect(self, error: Exception, asked: redis.ConnectionPool) -> Redirection | None:
        if not isinstance(error, AskError):  # of which MovedError is a child
            return None
        # An empty host is that of the node that answered.
        node = (error.host or str(asked.connection_kwargs["host"]), int(error.port))
        if not isinstance(error, MovedError):
            return Redirection(asking=self._pool(node))
        with self._lock:
            self._owners[int(error.slot_id)] = node
        # Where one slot went others follow: the next call asks for all of them.
        self.doubt()
        return Redirection()

    def doubt(self) -> None:
        self._doubted = True

    def look(self) -> list[Finding]:
        with within(self._timeout_s):
            self._map()
        findings: dict[Finding, None] = {}  # in order; what all nodes have in common once
        for node in self._primaries:
            found = look_at_server(self._pool(node), self._timeout_s, cluster=True)
            findings |= dict.fromkeys(found)
        return list(findings)

    def primaries(self) -> Sequence[redis.ConnectionPool]:
        if self._doubted:
            self._map()
        return [self._pool(node) for node in self._primaries]

    def close(self) -> None:
        with self._lock:
            for pool in self._pools.values():
                pool.disconnect()

    def _pool(self, node: Node) -> redis.ConnectionPool:
        with self._lock:
            found = self._pools.get(node)
            if found is None:
                found = self._pools[node] = pool_of(self._address, self._settings, *node)
            return found

    def _map(self) -> None:
        """Asks for the slots' owners; of several threads one does, and the others wait for it.

        Raises:
            redis.RedisError, OSError: no node shows its map. An older map stays.
        """
        if not self._mapping.acquire(timeout=max(0.0, min(self._timeout_s, remaining_s()))):
            raise redis.TimeoutError("another call waits for the map of the cluster's slots")
        try:
            if not self._doubted or time.monotonic() - self._mapped_at < _MAP_LASTS_S:
                return
            self._doubted = False
            try:
                self._take(self._shown())
            except BaseException:
                self._doubted = True
                raise
            self._mapped_at = time.monotonic()
        finally:
            self._mapping.release()

    def _shown(self) -> dict[int, Node]:
        """The map of the first node that shows one: those that are known, then those of the URL.
        Nodes that were silent come last."""
        known = random.sample(self._primaries, len(self._primaries))
        failure: Exception = redis.ConnectionError("no node of the cluster is known")
        nodes = dict.fromkeys([*known, *self._seeds])
        for node in sorted(nodes, key=lambda node: self.breaker(self._pool(node)).open):
            with within(self._timeout_s * _MAP_SHARE):
                answer = self._ask(node)
            if not isinstance(answer, Exception):
                return _owners(answer, node)
            if not is_lost(answer):
                raise answer
            failure = answer
        raise failure

    def _ask(self, node: Node) -> Any:
        exchange: Exchange = self.exchange(
            self._pool(node), {0: Unit((("CLUSTER", "SLOTS"),))}, anew=False
        )
        try:
            exchange.send()
            exchange.receive()
        finally:
            exchange.end()
        return exchange.outcomes[0]

    def _take(self, owners: dict[int, Node]) -> None:
        if not owners:
            raise ClusterDownError("no node of the cluster has slots")
        with self._lock:
            self._owners = owners
            self._primaries = tuple(dict.fromkeys(owners.values()))
            kept = {*self._primaries, *self._seeds}
            gone = [self._pools.pop(node) for node in list(self._pools) if node not in kept]
        for pool in gone:
            pool.disconnect(inuse_connections=False)


def _owners(slots: list[list[Any]], asked: Node) -> dict[int, Node]:
    """Slot → primary, from the reply to CLUSTER SLOTS: ranges, each with its nodes, primary first.

    A node that does not know its own address gives an empty one: that is where we asked.
    """
    owners: dict[int, Node] = {}
    for first, last, primary, *_ in slots:
        host = (primary[0] or b"").decode()
        node = (asked[0] if host in ("", "?") else host, int(primary[1]))
        owners |= dict.fromkeys(range(int(first), int(last) + 1), node)
    return owners
