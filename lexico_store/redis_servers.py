"""How commands reach a server, and what is tried again when one does not answer."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import redis
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, TryAgainError

from lexico_proto.breaker import SLOW_S, Admission, Breaker
from lexico_proto.metrics import PROCESS, STORE_RETRIES
from lexico_store.deadline import remaining_s, within
from lexico_store.findings import Finding
from lexico_store.redis_errors import ServerSilent, is_lost
from lexico_store.redis_exchange import Command, Exchange, Unit
from lexico_store.redis_look import look_at_server, server_info
from lexico_store.settings import StoreSettings
from lexico_store.usage import StoreUsage

_log = logging.getLogger(__name__)

_PASSING: Final = (
    TryAgainError,  # a slot on the move, with a part of the keys on either side
    ClusterDownError,  # a failover in progress; MASTERDOWN
    ReadOnlyError,  # a primary that has just become a replica
)
"""Replies that mean: not now, and elsewhere before long."""
_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 0.5
_FREE_ROUNDS: Final = 4
"""Rounds without a pause: redirections of a cluster, which come to rest sooner."""


@dataclass(frozen=True, slots=True)
class Redirection:
    """Where a unit goes next."""

    asking: redis.ConnectionPool | None = None
    """The server that its slot is moving to, which wants ASKING first; None: the slot's owner."""


class Servers(ABC):
    """One server, the primary that sentinels name, or the nodes of a cluster.

    A call lasts `timeout_s` of the settings, or its caller's `within` if that is shorter. Within
    it, what was lost on a connection that had answered before is tried again on a new one, and
    where another server may take over, everything until one has. Every unit may be carried out
    twice, so it must do the same then.

    A server whose call was lost all the same is not asked for `probe_every_s`, and then by one
    call: the others fail at once. Where another may take over, that is so once it has been silent
    for `timeout_s`, so that a shorter failover costs no error.
    """

    fails_over: ClassVar[bool]
    """Whether another server may take over."""

    def __init__(self, settings: StoreSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._probe_every_s = settings.probe_every_s
        self._breakers: WeakKeyDictionary[redis.ConnectionPool, Breaker] = WeakKeyDictionary()
        self._breakers_lock = threading.Lock()
        self.directory = self._breaker("the cluster's map")
        """Of whoever says which server has what."""

    def breaker(self, pool: redis.ConnectionPool) -> Breaker:
        """The circuit breaker of a server."""
        with self._breakers_lock:
            found = self._breakers.get(pool)
            if found is None:
                at = pool.connection_kwargs
                place = at.get("path") or f"{at.get('host', 'primary')}:{at.get('port', '')}"
                found = self._breakers[pool] = self._breaker(place)
            return found

    def _breaker(self, peer: str) -> Breaker:
        patience_s = self._timeout_s if self.fails_over else 0.0
        return Breaker(self._probe_every_s, patience_s, min(SLOW_S, self._timeout_s / 2), peer)

    def run(
        self,
        commands: Sequence[Command],
        *,
        atomic: bool = False,
        waits: bool = True,
        ordered: bool = False,
    ) -> list[Any]:
        """The replies to `commands`, in one round trip a server; within one MULTI if `atomic`.

        Args:
            waits: as `Unit.waits`, of a MULTI.
            ordered: what is sent again takes along all that comes after it, to whatever server.

        Raises:
            redis.TryAgainError: not if it `waits`.
            ServerSilent: a server was silent lately, and another call is to find out.
            redis.RedisError, OSError: the first failure that trying again did not mend.
        """
        if atomic:
            units = [Unit(tuple(commands), atomic=True, waits=waits)]
        else:
            units = [Unit((command,)) for command in commands]
        outcomes = self.run_units(units, ordered=ordered)
        return outcomes[0] if atomic else outcomes

    def run_units(self, units: Sequence[Unit], *, ordered: bool = False) -> list[Any]:
        """The outcome of each unit, as `run`."""
        with within(self._timeout_s):
            return _Call(self, units, ordered).outcomes()

    @abstractmethod
    def pool_for(self, unit: Unit) -> redis.ConnectionPool:
        """Connections to the server that `unit` goes to."""

    def redirect(self, error: Exception, asked: redis.ConnectionPool) -> Redirection | None:
        """Where a server of a cluster sends us, if `error` says so."""
        return None

    def doubt(self) -> None:  # noqa: B027  (nothing to do where there is one server)
        """A server was lost, so another may have taken over."""

    @abstractmethod
    def look(self) -> list[Finding]:
        """See `PageStore.look`.

        Raises:
            redis.RedisError, OSError: a server cannot be asked.
        """

    def primaries(self) -> Sequence[redis.ConnectionPool]:
        """Connections to each server that keeps pages; none where they are not to be asked.

        Raises:
            redis.RedisError, OSError: nobody says which.
        """
        return ()

    def usage(self) -> StoreUsage | None:
        """See `PageStore.usage`.

        Raises:
            redis.RedisError, OSError: a server does not answer.
        """
        with within(self._timeout_s):
            found = [server_info(pool, self._timeout_s) for pool in self.primaries()]
        told = [info for info in found if info is not None]
        return StoreUsage.of(told) if told and len(told) == len(found) else None

    @abstractmethod
    def close(self) -> None:
        """Closes every connection."""

    def exchange(
        self, pool: redis.ConnectionPool, units: dict[int, Unit], *, anew: bool = False
    ) -> Exchange:
        """An exchange with one server, not begun."""
        return Exchange(pool, units, self._timeout_s, anew=anew, last=not self.fails_over)


class _Call:
    """One call's units, from the first try to their outcomes."""

    def __init__(self, servers: Servers, units: Sequence[Unit], ordered: bool) -> None:
        self._servers = servers
        self._ordered = ordered
        self._units = units
        self._outcomes: list[Any] = [None] * len(units)
        self._asking: dict[int, redis.ConnectionPool] = {}
        self._anew: set[redis.ConnectionPool] = set()
        self._pause = False
        self._began = time.monotonic()
        self._probes: set[Breaker] = set()
        """Of servers that this call finds out about for all others."""
        self._unheard: set[Breaker] = set()
        """Of servers that were silent in the last round."""

    def outcomes(self) -> list[Any]:
        try:
            return self._tried()
        except (redis.RedisError, OSError):
            for each in self._unheard:
                if each.lost(self._waited_s(), probe=each in self._probes):
                    _log.warning("store server=%s silent: calls fail at once", each.peer)
            self._probes -= self._unheard
            raise
        finally:
            for each in self._probes:
                each.let_go()

    def _waited_s(self) -> float:
        return time.monotonic() - self._began

    def _tried(self) -> list[Any]:
        pending = list(range(len(self._units)))
        for round_ in count():
            pending, error = self._try(pending)
            if error is None:
                return self._outcomes
            if remaining_s() <= 0:
                if isinstance(error, AskError):  # or MOVED: sent to and fro until the end
                    raise ClusterDownError("the slot is on the move") from error
                raise error
            if self._pause or round_ >= _FREE_ROUNDS:
                pause = min(_MAX_PAUSE_S, _PAUSE_S * 2 ** min(round_, 8))
                time.sleep(max(0.0, min(pause, remaining_s())))
                self._pause = False
        return self._outcomes  # never: `count` does not end

    def _try(self, pending: list[int]) -> tuple[list[int], Exception | None]:
        """One round. What is to be tried again, and the last error among it."""
        exchanges: list[Exchange] = []
        self._unheard.clear()
        self._admit(self._servers.directory)
        try:
            parts = self._parts(pending)
        except (redis.RedisError, OSError) as error:  # no map of the cluster
            if is_lost(error):
                self._unheard.add(self._servers.directory)
            if not self._mends(error, None):
                raise
            return pending, error
        self._heard(self._servers.directory)
        for pool in parts:  # before any is sent to
            self._admit(self._servers.breaker(pool))
        try:
            for pool, places in parts.items():
                units = {i: self._units[i] for i in places}
                each = self._servers.exchange(pool, units, anew=pool in self._anew)
                each.asking = frozenset(i for i in places if i in self._asking)
                exchanges.append(each)
                each.send()
            for each in exchanges:
                each.receive()
        finally:
            for each in exchanges:
                each.end()
        for each in exchanges:
            self._note(each)
        again: list[int] = []
        last: Exception | None = None
        self._asking.clear()
        for each in exchanges:
            for i, outcome in each.outcomes.items():
                if not isinstance(outcome, Exception):
                    self._outcomes[i] = outcome
                elif self._redirected(i, outcome, each) or (
                    (self._units[i].waits or not isinstance(outcome, TryAgainError))
                    and self._mends(outcome, each)
                ):
                    again.append(i)
                    last = outcome
                else:
                    raise outcome
        if again and self._ordered:
            again = list(range(min(again), len(self._units)))
        return again, last

    def _admit(self, breaker: Breaker) -> None:
        """
        Raises:
            ServerSilent: this call is to fail at once.
        """
        if breaker in self._probes:
            return
        admission = breaker.admit()
        if admission is Admission.PROBE:
            self._probes.add(breaker)
        elif admission is Admission.REFUSED:
            raise ServerSilent(f"silent for {breaker.silent_s:.1f} s, and not asked by each call")

    def _note(self, exchange: Exchange) -> None:
        breaker = self._servers.breaker(exchange.pool)
        if exchange.heard:
            self._heard(breaker)
        elif exchange.heard is False:
            breaker.silent(self._waited_s())
            self._unheard.add(breaker)

    def _heard(self, breaker: Breaker) -> None:
        self._probes.discard(breaker)
        if breaker.answered():
            _log.warning("store server=%s answers again", breaker.peer)

    def _parts(self, pending: list[int]) -> dict[redis.ConnectionPool, list[int]]:
        parts: dict[redis.ConnectionPool, list[int]] = defaultdict(list)
        for i in pending:
            pool = self._asking.get(i) or self._servers.pool_for(self._units[i])
            parts[pool].append(i)
        return parts

    def _redirected(self, place: int, error: Exception, exchange: Exchange) -> bool:
        found = self._servers.redirect(error, exchange.pool)
        if found is not None and found.asking is not None:
            self._asking[place] = found.asking
        return found is not None

    def _mends(self, error: Exception, exchange: Exchange | None) -> bool:
        """Whether trying again may mend it: at once on a new connection, or after a pause."""
        lost = is_lost(error)
        if lost and exchange is not None and exchange.reused:
            self._anew.add(exchange.pool)
        elif self._servers.fails_over and (lost or isinstance(error, _PASSING)):
            self._pause = True
        else:
            return False
        PROCESS.counter(STORE_RETRIES).add()
        self._servers.doubt()
        return True


class OneServer(Servers):
    """A server that nothing takes over from: where it is not there, its callers hear it now."""

    fails_over = False

    def __init__(self, pool: redis.ConnectionPool, settings: StoreSettings) -> None:
        super().__init__(settings)
        self._pool = pool

    def pool_for(self, unit: Unit) -> redis.ConnectionPool:
        return self._pool

    def look(self) -> list[Finding]:
        return look_at_server(self._pool, self._timeout_s, cluster=False)

    def primaries(self) -> Sequence[redis.ConnectionPool]:
        return [self._pool]

    def close(self) -> None:
        self._pool.disconnect()
