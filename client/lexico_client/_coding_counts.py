"""How many models a process codes, and with what: a gauge that is looked at when it is read."""

from __future__ import annotations

import threading
from typing import Final, Protocol
from weakref import WeakSet, WeakValueDictionary

from lexico_codec.codecs.codec import Codec
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import LexicoError
from lexico_proto.metrics import (
    CLIENT_MODELS,
    CLIENT_SETS_REFUSED,
    Metrics,
    codec_label,
    reason_of,
)


class Coded(Protocol):
    """What is counted."""

    @property
    def codec(self) -> Codec: ...

    @property
    def source(self) -> str: ...


class CodingCounts:
    """Of the clients that count in the same metrics, all together."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._all = WeakSet[Coded]()
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Another thread may have held it."""
        self._lock = threading.Lock()

    def add(self, coded: Coded) -> None:
        """Counts one for as long as it lives, under what it is whenever that is read."""
        with self._lock:
            self._all.add(coded)
        self.changed(coded)

    def changed(self, coded: Coded) -> None:
        """Has a series for what it is now."""
        codec, source = codec_label(coded.codec.name), coded.source
        self._metrics.watch(CLIENT_MODELS, lambda: self._number(codec, source), codec, source)

    def refused(self, error: LexicoError) -> None:
        """Counts a set that was not taken."""
        self._metrics.counter(CLIENT_SETS_REFUSED, reason_of(error)).add()

    def _number(self, codec: str, source: str) -> int:
        with self._lock:
            all_of_them = list(self._all)
        return sum((codec_label(c.codec.name), c.source) == (codec, source) for c in all_of_them)


_KNOWN: Final = WeakValueDictionary[int, CodingCounts]()
"""By the id of the metrics, which live as long as the value."""


def counts_of(metrics: Metrics) -> CodingCounts:
    """The one of these metrics."""
    found = _KNOWN.get(id(metrics))
    if found is None:
        found = _KNOWN[id(metrics)] = CodingCounts(metrics)
    return found
