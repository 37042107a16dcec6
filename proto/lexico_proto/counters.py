"""Counters, gauges and histograms of a process: numbers and their labels. No library, no port.

Which there are is told by `lexico_proto.metrics`; `lexico_proto.prometheus` shows them.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import InternalError

OTHER: Final = "other"
"""What the callers beyond the bound of an open label are counted under, all of them together."""
MAX_OPEN: Final = 50
"""Values of an open label that a process tells apart, unless it is told otherwise."""


@dataclass(frozen=True)
class Label:
    """A label, and every value it may have."""

    name: str
    values: frozenset[str] | None
    """None for an open label, whose values come from outside, such as names of tenants. The first
    that are seen have series of their own, and all others share `OTHER`."""

    @property
    def most(self) -> int:
        """Values that it may have at most."""
        return MAX_OPEN + 1 if self.values is None else len(self.values)


@dataclass(frozen=True, eq=False)
class Family:
    """Numbers of one name: one for each combination of label values that occurs."""

    name: str
    """As Prometheus wants it: the unit, then `_total` for a counter."""
    help: str
    labels: tuple[Label, ...] = ()
    gauge: bool = False
    """A number that is set, and may become less."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, ascending; none for another kind."""

    @property
    def kind(self) -> str:
        """counter, gauge or histogram."""
        return "gauge" if self.gauge else "histogram" if self.buckets else "counter"


Values = tuple[str, ...]
"""Label values, in the order of the family's labels."""

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

    def follow(self, total: int) -> None:
        """Has the number of somebody else who counts, and who may have begun anew."""
        with _lock:
            self._number = total

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


@dataclass(frozen=True)
class Distribution:
    """How observations are distributed."""

    counts: tuple[int, ...]
    """Observations in each bucket; the last is above every bound."""
    total: float
    """Sum of what was observed."""


class Histogram:
    """Observations by bucket. Any thread may observe."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Counts one observation."""
        place = bisect_left(self._bounds, value)
        with _lock:
            self._counts[place] += 1
            self._total += value

    def add(self, more: Distribution) -> None:
        """Counts the observations of another histogram of the same bounds."""
        with _lock:
            self._counts = [a + b for a, b in zip(self._counts, more.counts, strict=True)]
            self._total += more.total

    @property
    def distribution(self) -> Distribution:
        """Of what was observed so far."""
        with _lock:
            return Distribution(tuple(self._counts), self._total)


class _Uncounted(Gauge):
    __slots__ = ()

    def add(self, amount: int = 1) -> None: ...
    def follow(self, total: int) -> None: ...
    def set(self, number: int) -> None: ...


class _Unobserved(Histogram):
    __slots__ = ()

    def observe(self, value: float) -> None: ...
    def add(self, more: Distribution) -> None: ...


Change = tuple[str, Values, int | Distribution]
"""A family's name, label values, and what came to their number."""


class Metrics:
    """The numbers of a process, or of a test."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        """
        Args:
            max_open: values of each open label that are told apart.
        """
        self._max_open = max_open
        self._counting = True
        self._open: dict[str, set[str]] = {}
        self._counters: dict[Family, dict[Values, Counter]] = {}
        self._histograms: dict[Family, dict[Values, Histogram]] = {}
        self._watched: dict[tuple[Family, Values], Callable[[], float]] = {}
        self._refreshers: dict[str, Callable[[], None]] = {}
        self._taken: dict[tuple[Family, Values], int | Distribution] = {}

    def configure(self, *, max_open: int, count: bool = True) -> None:
        """To be called before anything else of it.

        Args:
            max_open: values of each open label that are told apart.
            count: False for numbers that nobody wants: whatever counts then does nothing.
        """
        self._max_open, self._counting = max_open, count

    @property
    def counts(self) -> bool:
        """Whether anything is counted."""
        return self._counting

    def counter(self, family: Family, *values: str) -> Counter:
        """The counter of these label values, from 0 on in snapshots. Callers keep it: adding is
        then all it costs.

        Raises:
            InternalError: not one value for each label, or one that its label does not have, or a
                family of histograms.
        """
        if family.buckets:
            raise InternalError(f"{family.name} is no counter")
        with _lock:
            values = self._checked(family, values)
            if not self._counting:
                return _Uncounted()
            children = self._counters.setdefault(family, {})
            found = children.get(values)
            if found is None:
                found = children[values] = Gauge() if family.gauge else Counter()
            return found

    def gauge(self, family: Family, *values: str) -> Gauge:
        """As `counter`, of a family of gauges.

        Raises:
            InternalError: as `counter`, or the family is none of gauges.
        """
        if not family.gauge:
            raise InternalError(f"{family.name} is no gauge")
        found = self.counter(family, *values)
        return found if isinstance(found, Gauge) else _Uncounted()

    def histogram(self, family: Family, *values: str) -> Histogram:
        """As `counter`, of a family of histograms.

        Raises:
            InternalError: as `counter`, or the family is none of histograms.
        """
        if not family.buckets:
            raise InternalError(f"{family.name} is no histogram")
        with _lock:
            values = self._checked(family, values)
            if not self._counting:
                return _Unobserved(family.buckets)
            children = self._histograms.setdefault(family, {})
            found = children.get(values)
            if found is None:
                found = children[values] = Histogram(family.buckets)
            return found

    def watch(self, family: Family, read: Callable[[], float], *values: str) -> None:
        """Has a gauge be what `read` says whenever it is looked at: from any thread, and quickly.

        Raises:
            InternalError: as `gauge`.
        """
        if not family.gauge:
            raise InternalError(f"{family.name} is no gauge")
        with _lock:
            if self._counting:
                self._watched[family, self._checked(family, values)] = read

    def before_reading(self, what: str, refresh: Callable[[], None]) -> None:
        """Has `refresh` called before somebody outside reads the numbers. It may block, for the
        second or two that a reader waits.

        Args:
            what: is brought up to date; a second one of this name takes the place of the first.
        """
        with _lock:
            if self._counting:
                self._refreshers[what] = refresh

    def refresh(self) -> None:
        """Brings everything up to date that must be asked for."""
        for each in list(self._refreshers.values()):
            each()

    def snapshot(self) -> dict[Family, dict[Values, int | float]]:
        """Every number but those of histograms, of one moment: family → label values, in the order
        of its labels → number.
        """
        with _lock:
            found: dict[Family, dict[Values, int | float]] = {
                family: {values: counter.number for values, counter in children.items()}
                for family, children in self._counters.items()
            }
            watched = list(self._watched.items())
        for (family, values), read in watched:
            found.setdefault(family, {})[values] = read()
        return found

    def distributions(self) -> dict[Family, dict[Values, Distribution]]:
        """Every histogram, as `snapshot`."""
        with _lock:
            return {
                family: {values: each.distribution for values, each in children.items()}
                for family, children in self._histograms.items()
            }

    def take_changes(self, families: Iterable[Family]) -> tuple[Change, ...]:
        """What came to counters and histograms of these families since the last call, to be added
        to the metrics of another process.
        """
        found: list[Change] = []
        with _lock:
            for family in families:
                for values, counter in self._counters.get(family, {}).items():
                    before = self._taken.get((family, values), 0)
                    if isinstance(before, int) and counter.number != before:
                        self._taken[family, values] = counter.number
                        found.append((family.name, values, counter.number - before))
                for values, histogram in self._histograms.get(family, {}).items():
                    now = histogram.distribution
                    last = self._taken.get((family, values))
                    if now != last:
                        self._taken[family, values] = now
                        found.append((family.name, values, _less(now, last)))
        return tuple(found)

    def add_changes(self, changes: Iterable[Change], families: Mapping[str, Family]) -> None:
        """Adds what `take_changes` of another process gave.

        Args:
            families: by name; what is of another one is passed over.
        """
        for name, values, change in changes:
            family = families.get(name)
            if family is None:
                continue
            if isinstance(change, Distribution):
                self.histogram(family, *values).add(change)
            else:
                self.counter(family, *values).add(change)

    def _checked(self, family: Family, values: Values) -> Values:
        """The values that are counted under. With the lock."""
        if len(values) != len(family.labels):
            raise InternalError(f"{family.name} has no counter of {values}")
        told = []
        for value, label in zip(values, family.labels, strict=True):
            if label.values is None:
                told.append(self._of_open(label.name, value))
            elif value in label.values:
                told.append(value)
            else:
                raise InternalError(f"{family.name} has no counter of {values}")
        return tuple(told)

    def _of_open(self, label: str, value: str) -> str:
        seen = self._open.setdefault(label, set())
        if value not in seen:
            if len(seen) >= self._max_open:
                return OTHER
            seen.add(value)
        return value


def _less(now: Distribution, before: int | Distribution | None) -> Distribution:
    if not isinstance(before, Distribution):
        return now
    counts = tuple(a - b for a, b in zip(now.counts, before.counts, strict=True))
    return Distribution(counts, now.total - before.total)
