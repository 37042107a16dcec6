"""One look at the store before anyone depends on it."""

from __future__ import annotations

import logging

from lexico_proto.errors import Busy, ConfigurationError, Unavailable
from lexico_store import Level, PageStore, StoreSettings, open_store

_log = logging.getLogger(__name__)

QUICK_S = 2.0
"""Longest wait for a store that may be away: it is waited for later."""


def look_at_start(store: PageStore, *, log: bool = True) -> None:
    """Logs what a look at the store finds, once.

    Raises:
        ConfigurationError: what it found cannot work; the message says what to do.
        LexicoError: the store's: it is away.
    """
    findings = store.look()
    refused = [str(each) for each in findings if each.level is Level.REFUSED]
    if refused:
        raise ConfigurationError("; ".join(refused))
    for each in findings if log else ():
        level = logging.WARNING if each.level is Level.WARNING else logging.INFO
        _log.log(level, "store finding=%s", each)


def look_before_start(url: str, *, log: bool = True) -> None:
    """As `look_at_start`, on connections of its own. A store that is away is passed over.

    Raises:
        ConfigurationError: the store refuses us, or what is there cannot work.
    """
    quick = StoreSettings(timeout_s=QUICK_S, connect_timeout_s=QUICK_S, max_connections=2)
    with open_store(url, quick) as store:
        try:
            look_at_start(store, log=log)
        except (Busy, Unavailable) as error:
            _log.warning("store is away reason=%s", error.reason)
