"""What an adapter counts, and the warnings that it gives once a minute at most."""

from __future__ import annotations

import logging
import time
from typing import Final

from lexico_proto.errors import LexicoError
from lexico_proto.metrics import (
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_STAGED,
    ENGINE_TOKENS,
    PROCESS,
    Metrics,
)

WARN_EVERY_S: Final = 60.0


class Counts:
    """Of one side of an adapter."""

    def __init__(self, log: logging.Logger, metrics: Metrics = PROCESS) -> None:
        """
        Args:
            log: the adapter's, which gets the warnings.
            metrics: where it is counted.
        """
        self._log = log
        self._metrics = metrics
        self._staged = metrics.gauge(ENGINE_STAGED)
        self._warned: dict[str, tuple[float, int]] = {}

    def request(self, outcome: str) -> None:
        """One request, by what became of it."""
        self._metrics.counter(ENGINE_REQUESTS, outcome).add()

    def tokens(self, what: str, count: int) -> None:
        """Tokens of a prompt."""
        self._metrics.counter(ENGINE_TOKENS, what).add(count)

    def pages(self, outcome: str, count: int) -> None:
        """Pages that were to be stored."""
        self._metrics.counter(ENGINE_PAGES, outcome).add(count)

    def staged(self, size: int) -> None:
        """Bytes of copies that there are now."""
        self._staged.set(size)

    def warn(self, what: str, error: BaseException) -> None:
        """A warning of what failed, once a minute for each kind; the others are counted in it.

        Args:
            what: failed: `match`, `load`, `store`.
            error: why.
        """
        now = time.monotonic()
        last, passed = self._warned.get(what, (-WARN_EVERY_S, 0))
        if now - last < WARN_EVERY_S:
            self._warned[what] = last, passed + 1
            return
        self._warned[what] = now, 0
        reason = error.reason if isinstance(error, LexicoError) else type(error).__name__
        self._log.warning(
            "%s failed, the engine computes by itself: reason=%s since_last=%d error=%s",
            what,
            reason,
            passed + 1,
            error,
            exc_info=None if isinstance(error, LexicoError) else error,
        )
