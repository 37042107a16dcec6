"""Whether the page store answers, asked now and then in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from lexico_proto.errors import LexicoError
from lexico_store import PageStore, StoreSettings, open_store

PING_EVERY_S: Final = 2.0
PINGS_MISSED: Final = 3
"""Pings in a row without an answer, after which a store counts as gone."""
QUICK: Final = StoreSettings(timeout_s=1.0, connect_timeout_s=1.0, max_connections=1)
"""Of the handle that pings: a store that takes longer is not there for calls either."""


def ping_until(stopped: threading.Event, store: PageStore, tell: Callable[[bool], None]) -> None:
    """Pings until `stopped` is set; tells whether the store is there.

    Args:
        stopped: ends it, after a ping that is under way.
        store: a handle with short timeouts.
        tell: takes False from the `PINGS_MISSED`th miss in a row on, True from the next answer on.
    """
    missed = 0
    while not stopped.is_set():
        try:
            store.ping()
            missed = 0
        except LexicoError:
            missed += 1
        if missed in (0, PINGS_MISSED):
            tell(not missed)
        stopped.wait(PING_EVERY_S)


@contextmanager
def pinged(url: str, tell: Callable[[bool], None]) -> Iterator[None]:
    """Pings the store at `url` while the block runs; see `ping_until`. The end of the block waits
    for no ping: a store that hangs must not hold up a shutdown."""
    stopped = threading.Event()

    def ping() -> None:
        with open_store(url, QUICK) as store:
            ping_until(stopped, store, tell)

    threading.Thread(target=ping, name="store-pings", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()
