"""One deadline for a whole shutdown, shared out among its steps."""

from __future__ import annotations

import time
from typing import Final

from lexico_services import supervisor

BEYOND_DRAIN_S: Final = 10.0
"""Seconds beyond the drain time after which nothing runs any more."""
_OWN_S: Final = BEYOND_DRAIN_S - supervisor.CLEARING_S - 1.0
"""The share of the steps in this process; with the rest the supervisor ends what they left."""


class Ending:
    """How long the end of this process may still take. It begins once, and then time runs."""

    def __init__(self, drain_s: float) -> None:
        """
        Args:
            drain_s: seconds that running calls are given.
        """
        self.drain_s = drain_s
        self._began: float | None = None
        supervisor.ends_within(drain_s + BEYOND_DRAIN_S)

    def begin(self) -> None:
        """Time runs from now on. Idempotent."""
        if self._began is None:
            self._began = time.monotonic()
            supervisor.ending()

    def left(self, reserve_s: float = 0.0) -> float:
        """Seconds left, at least 0.

        Args:
            reserve_s: seconds for the steps that come afterwards.
        """
        began = time.monotonic() if self._began is None else self._began
        return max(0.0, began + self.drain_s + _OWN_S - reserve_s - time.monotonic())
