"""Counters of a process: what is counted, under which names, and the numbers. No library, no port.

An exporter is one adapter over `Metrics.snapshot`: a `prometheus_client` collector yields a
`CounterMetricFamily` for each family, a `GaugeMetricFamily` where it is a gauge, and adds a sample
for each of its numbers.

Names and labels are a contract with whoever draws them, as the messages beside this file are one
with clients. Label values come from fixed sets, so that no caller can make a counter more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import ERRORS, Cancelled, InternalError, LexicoError


@dataclass(frozen=True)
class Label:
    """A label, and every value it may have."""

    name: str
    values: frozenset[str]


@dataclass(frozen=True, eq=False)
class Family:
    """Counters of one name: one for each combination of label values that occurs."""

    name: str
    """As Prometheus wants it: the unit, then `_total` for a counter."""
    help: str
    labels: tuple[Label, ...] = ()
    gauge: bool = False
    """A number that is set, and may become less."""


def _label(name: str, values: Iterable[str]) -> Label:
    return Label(name, frozenset(values))


OK: Final = "ok"
METHODS: Final = (
    *("put", "match", "get", "register", "fetch", "list", "describe", "namespaces"),
    *("usage", "pin", "unpin", "forget"),
)
"""Every RPC, in lower case."""
PAGE_OUTCOMES: Final = ("stored", "present", "in-progress", "failed", "cancelled")
"""The outcomes of an encoder that answers, and two of one that does not."""
MISS_REASONS: Final = ("absent", "damaged", "newer")
ABSENT: Final = MISS_REASONS[0]

_METHOD: Final = _label("method", METHODS)
_OUTCOME: Final = _label("outcome", (OK, *ERRORS))

CALLS: Final = Family(
    "lexico_calls_total",
    "Calls that a server ended, by what it answered: ok, or the reason of the error.",
    (_METHOD, _OUTCOME),
)
PAGES: Final = Family(
    "lexico_pages_total",
    "Pages that an ingress gave to encoders.",
    (_label("outcome", PAGE_OUTCOMES),),
)
RECEIVED_BYTES: Final = Family(
    "lexico_received_bytes_total", "Bytes of caches that an ingress received in whole pages."
)
STORED_BYTES: Final = Family(
    "lexico_stored_bytes_total", "Bytes of frames that encoders committed for an ingress."
)
SENT_BYTES: Final = Family(
    "lexico_sent_bytes_total", "Bytes of frames that a reload server wrote to callers."
)
MISSES: Final = Family(
    "lexico_misses_total",
    "Frames that a Get looked for and could not give.",
    (_label("reason", MISS_REASONS),),
)
CLIENT_CALLS: Final = Family(
    "lexico_client_calls_total",
    "Calls that a client made, by how they ended: ok, or the reason of the error.",
    (_METHOD, _OUTCOME),
)
CLIENT_BYTES: Final = Family(
    "lexico_client_bytes_total",
    "Bytes of caches in offloads that were answered (sent), and of frames in loads (received).",
    (_label("direction", ("sent", "received")),),
)
CLIENT_MISSES: Final = Family(
    "lexico_client_misses_total",
    "Loads that brought nothing, or less than was matched: absent, or the reason of the error.",
    (_label("reason", (ABSENT, *ERRORS)),),
)
FILE_READS: Final = Family(
    "lexico_file_reads_total",
    "Files of tokens, certificates and keys that changed: taken, or refused for what was before.",
    (_label("outcome", ("taken", "refused")),),
)
CERTIFICATE_END: Final = Family(
    "lexico_certificate_end_timestamp_seconds",
    "When the certificate that the port shows ends, in Unix time.",
    gauge=True,
)

_lock: Final = threading.RLock()  # a signal handler may count as well
if hasattr(os, "register_at_fork"):  # held over a fork: a child finds it free, and whole numbers
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Counter:
    """A number that only grows. Any thread may add to it."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = 0

    def add(self, amount: int = 1) -> None:
        """Adds 0 or more.

        Raises:
            InternalError: less than 0.
        """
        if amount < 0:
            raise InternalError(f"a counter cannot go back by {-amount}")
        with _lock:
            self._number += amount

    @property
    def number(self) -> int:
        """What was added so far."""
        return self._number


class Gauge(Counter):
    """A number that is set."""

    __slots__ = ()

    def set(self, number: int) -> None:
        """Has `number` from now on."""
        with _lock:
            self._number = number


class Metrics:
    """The counters of a process, or of a test."""

    def __init__(self) -> None:
        self._counters: dict[Family, dict[tuple[str, ...], Counter]] = {}

    def counter(self, family: Family, *values: str) -> Counter:
        """The counter of these label values, from 0 on in snapshots. Callers keep it: adding is
        then all it costs.

        Raises:
            InternalError: not one value for each label, or one that its label does not have.
        """
        if len(values) != len(family.labels) or any(
            value not in label.values for value, label in zip(values, family.labels, strict=True)
        ):
            raise InternalError(f"{family.name} has no counter of {values}")
        with _lock:
            made = Gauge() if family.gauge else Counter()
            return self._counters.setdefault(family, {}).setdefault(values, made)

    def gauge(self, family: Family, *values: str) -> Gauge:
        """As `counter`, of a family of gauges.

        Raises:
            InternalError: as `counter`, or the family is none of gauges.
        """
        found = self.counter(family, *values)
        if not isinstance(found, Gauge):
            raise InternalError(f"{family.name} is no gauge")
        return found

    def snapshot(self) -> dict[Family, dict[tuple[str, ...], int]]:
        """Every number, of one moment: family → label values, in the order of its labels →
        number.
        """
        with _lock:
            return {
                family: {values: counter.number for values, counter in children.items()}
                for family, children in self._counters.items()
            }


PROCESS: Final = Metrics()
"""Where everything in a process counts that was not given other metrics."""


class Calls:
    """Calls of one method, counted as they end."""

    def __init__(self, metrics: Metrics, family: Family, method: str) -> None:
        """
        Args:
            metrics: where to count.
            family: `CALLS` or `CLIENT_CALLS`.
            method: one of `METHODS`.
        """
        self._metrics = metrics
        self._family = family
        self._method = method
        self._ok = metrics.counter(family, method, OK)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts one call, by what leaves the block."""
        try:
            yield
        except BaseException as error:
            self._metrics.counter(self._family, self._method, reason_of(error)).add()
            raise
        self._ok.add()


def reason_of(error: BaseException) -> str:
    """The reason that an exception is counted under, always one of `ERRORS`.

    What is no `Exception` ends a call from outside: a cancelled task, a generator that is closed.
    """
    if isinstance(error, LexicoError) and error.reason in ERRORS:
        return error.reason
    return InternalError.reason if isinstance(error, Exception) else Cancelled.reason
