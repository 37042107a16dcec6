"""What is looked at whenever metrics are read: rooms, queues, the store, parts of the service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from lexico_proto import metrics as m
from lexico_proto.errors import LexicoError
from lexico_proto.metrics import Metrics
from lexico_services.admission import ByteBudget, Slots, ThreadCalls
from lexico_store import PageStore, StoreUsage
from lexico_store.deadline import within

if TYPE_CHECKING:
    from lexico_services.offload.partial_pages import PartialPages
    from lexico_services.quotas import FairTurns

ASKED_EVERY_S: Final = 5.0
"""The store is asked about itself no more often, whoever reads."""
STORE_ANSWERS_S: Final = 1.0
"""Longest wait for what it says."""


class Rooms(Protocol):
    """As much of an ingress as is looked at."""

    budget: ByteBudget
    turns: FairTurns
    partial: PartialPages


def watch_ingress(metrics: Metrics, ingress: Rooms) -> None:
    """Bytes in flight, and pages that wait."""
    budget, turns, partial = ingress.budget, ingress.turns, ingress.partial
    metrics.watch(m.INFLIGHT_BYTES, lambda: budget.used)
    metrics.watch(m.INFLIGHT_LIMIT, lambda: budget.limit)
    metrics.watch(m.PAGES_ENCODING, lambda: turns.running)
    metrics.watch(m.PAGES_WAITING, lambda: turns.waiting)
    metrics.watch(m.SLICED_WAITING, lambda: partial.waiting)
    metrics.watch(m.SLICED_BYTES, lambda: partial.held_bytes)


def watch_reload(
    metrics: Metrics, store: PageStore, streams: Slots, calls: ThreadCalls, buffers: ByteBudget
) -> None:
    """Streams, calls and bytes of a reload server, and its store."""
    metrics.watch(m.STREAMS, lambda: streams.used)
    metrics.watch(m.STREAMS_LIMIT, lambda: streams.limit)
    metrics.watch(m.STORE_CALLS, lambda: calls.used)
    metrics.watch(m.BUFFERED_BYTES, lambda: buffers.used)
    metrics.watch(m.BUFFERED_LIMIT, lambda: buffers.limit)
    metrics.before_reading("store", StoreNumbers(metrics, store.usage).refresh)


def watch_parts(metrics: Metrics, parts: Mapping[str, Callable[[], bool]]) -> None:
    """Whether each part of a service is there."""

    def reader(there: Callable[[], bool]) -> Callable[[], float]:
        return lambda: float(there())

    for part, there in parts.items():
        metrics.watch(m.PART_UP, reader(there), part)


class StoreNumbers:
    """Brings what the store says of itself up to date, now and then, and never for long."""

    def __init__(
        self,
        metrics: Metrics,
        ask: Callable[[], StoreUsage | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            metrics: that get the numbers.
            ask: asks the store.
            clock: seconds; tests inject theirs.
        """
        self._metrics = metrics
        self._ask = ask
        self._clock = clock
        self._due = float("-inf")
        self._asking = threading.Lock()

    def refresh(self) -> None:
        """Asks, if that was not done a moment ago. Of several readers one does; the others take
        what there is.
        """
        if not self._asking.acquire(blocking=False):
            return
        try:
            if self._clock() < self._due:
                return
            self._due = self._clock() + ASKED_EVERY_S
            self._look()
        finally:
            self._asking.release()

    def _look(self) -> None:
        up, gauge = self._metrics.gauge(m.STORE_UP), self._metrics.gauge
        try:
            with within(STORE_ANSWERS_S):
                usage = self._ask()
        except LexicoError:
            up.set(0)
            return
        up.set(1)
        if usage is None:
            return  # it has no numbers, or does not show them
        gauge(m.STORE_BYTES).set(usage.used_bytes)
        gauge(m.STORE_LIMIT).set(usage.max_bytes)
        gauge(m.STORE_CONNECTIONS).set(usage.connections)
        self._metrics.counter(m.STORE_EVICTIONS).follow(usage.evictions)
        self._metrics.counter(m.STORE_EXPIRIES).follow(usage.expiries)
