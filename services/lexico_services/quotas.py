"""What one tenant may take of a server while others want it too. For one event loop each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from lexico_proto.errors import QuotaExceeded
from lexico_services.policies import Policies

_TENANTS_KEPT: Final = 4096


class CallRates:
    """Bounds each tenant's calls a second."""

    def __init__(self, policies: Policies, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            policies: how many each may make.
            clock: seconds; tests inject theirs.
        """
        self._policies = policies
        self._clock = clock
        self._left: dict[bytes, tuple[float, float]] = {}
        """Scope → calls left, and when that was so; who called last is last. An authority or an
        issuer of tokens may name any number of tenants."""

    def count(self, scope: bytes) -> None:
        """Counts a call.

        Raises:
            QuotaExceeded: the tenant has made all that it may make now.
        """
        rate = self._policies.of(scope).max_calls_per_s
        if rate is None:
            return
        now, most = self._clock(), max(1.0, rate)
        left, then = self._left.pop(scope, (most, now))
        left = min(most, left + (now - then) * rate)
        self._left[scope] = (left, now)
        if len(self._left) > _TENANTS_KEPT:
            del self._left[next(iter(self._left))]
        if left < 1:
            raise QuotaExceeded(
                f"the tenant may make {rate:g} calls a second: come back in {(1 - left) / rate:.2g}"
                " s, or have max_calls_per_s raised"
            )
        self._left[scope] = (left - 1, now)


class TenantBytes:
    """Bounds the bytes of each tenant's pages in flight."""

    def __init__(self, policies: Policies) -> None:
        """
        Args:
            policies: how many bytes each may have.
        """
        self._policies = policies
        self._used: dict[bytes, int] = {}

    def room(self, scope: bytes, unit: int, most: int) -> int:
        """Pages that the tenant may send now, 1..`most`.

        Args:
            scope: of the tenant.
            unit: bytes of a page.
            most: pages wanted.

        Raises:
            QuotaExceeded: not one.
        """
        limit = self._policies.of(scope).max_inflight_bytes
        if limit is None:
            return most
        used = self._used.get(scope, 0)
        if used + unit > limit:
            raise QuotaExceeded(
                f"{used} of the tenant's {limit} bytes are in flight, a page has {unit}: offload "
                "again later, or have max_inflight_bytes raised"
            )
        return min(most, (limit - used) // unit)

    def take(self, scope: bytes, size: int) -> None:
        """Counts bytes; give them back with `give_back`."""
        self._used[scope] = self._used.get(scope, 0) + size

    def give_back(self, scope: bytes, size: int) -> None:
        """Returns bytes that were taken."""
        self._used[scope] -= size
        if not self._used[scope]:
            del self._used[scope]


class FairTurns:
    """A bound on work under way; those who wait get on by tenants in turn, each tenant's in order.

    So a tenant with one page waits for a page of each other tenant, however many they have.
    """

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: work at a time.
        """
        self._limit = limit
        self._running = 0
        self._waiting: dict[bytes, deque[asyncio.Future[None]]] = {}

    @property
    def running(self) -> int:
        """Work under way."""
        return self._running

    @property
    def waiting(self) -> int:
        """Work that waits; about right for whoever asks from another thread."""
        return sum(map(len, list(self._waiting.values())))

    @asynccontextmanager
    async def turn(self, scope: bytes) -> AsyncIterator[None]:
        """Waits for the tenant's turn, and holds it for the block."""
        await self._wait(scope)
        try:
            yield
        finally:
            self._next()

    async def _wait(self, scope: bytes) -> None:
        if self._running < self._limit:
            self._running += 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(scope, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._next()  # it was this one's turn by then
            raise

    def _next(self) -> None:
        """Gives a turn that ended to the first of the tenant that waits longest for one."""
        while self._waiting:
            scope = next(iter(self._waiting))
            queue = self._waiting.pop(scope)
            first = queue.popleft()
            if queue:
                self._waiting[scope] = queue  # at the end: the others come first
            if not first.done():
                first.set_result(None)
                return
        self._running -= 1
