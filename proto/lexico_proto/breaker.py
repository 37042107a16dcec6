"""A circuit breaker: a peer that does not answer costs one slow call, and not each call its time.

    closed ── a call that was lost, and slow ──▶ open ── every_s later, one caller ──▶ half-open
       ▲                                           ▲                                      │
       └──────────── the first answer ─────────────┴────────────── lost again ────────────┘

Only calls that were slow open it. A peer that refuses connections says so at once, and a caller
that may wait a moment alone learns nothing of a peer that needs longer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

SLOW_S: Final = 0.5
"""Usual seconds that a call must have waited for its being lost to count."""


class Admission(Enum):
    """What a caller may do."""

    CALL = auto()
    """Call: the circuit is closed."""
    PROBE = auto()
    """Call, for all others too: whether the peer is back. Ends with `answered`, `lost` or
    `let_go`."""
    REFUSED = auto()
    """Fail at once."""


class Breaker:
    """Of one peer. Any thread may ask; nothing here blocks."""

    def __init__(
        self,
        every_s: float,
        patience_s: float = 0.0,
        slow_s: float = SLOW_S,
        peer: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            every_s: seconds from a lost call to the next probe; 0 for a circuit that never opens.
            patience_s: seconds that a peer must have been silent in all before it opens: where
                another may take over, calls wait for that.
            slow_s: seconds that a call must have waited for its being lost to count.
            peer: its name, for logs.
            clock: seconds, monotonic; tests inject theirs.
        """
        self.peer = peer
        self._every_s = every_s
        self._patience_s = patience_s
        self._slow_s = slow_s
        self._clock = clock
        self._lock = threading.Lock()
        self._silent_since = math.inf
        self._probe_at: float | None = None
        """When the next probe may go; None while closed."""
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether calls fail at once, but for a probe."""
        return self._probe_at is not None

    @property
    def silent_s(self) -> float:
        """Seconds since the peer was first found silent; 0 if it was not."""
        return max(0.0, self._clock() - self._silent_since)

    def admit(self) -> Admission:
        """What this caller may do now. Of many that ask while a probe is due, one is the probe."""
        if self._probe_at is None:  # most calls: no lock to take
            return Admission.CALL
        with self._lock:
            if self._probe_at is None:
                return Admission.CALL
            if self._probing or self._clock() < self._probe_at:
                return Admission.REFUSED
            self._probing = True
            return Admission.PROBE

    def answered(self) -> bool:
        """The peer answered, whatever it said, to whomever: the circuit is closed.

        Returns:
            Whether it was open.
        """
        if self._silent_since == math.inf:  # most calls: nothing to change, and no lock to take
            return False
        with self._lock:
            was_open = self._probe_at is not None
            self._silent_since, self._probe_at, self._probing = math.inf, None, False
        return was_open

    def silent(self, waited_s: float = 0.0) -> None:
        """A try of a call was lost, and another one may follow: time runs from when it began.

        Args:
            waited_s: seconds since then.
        """
        with self._lock:
            self._silent_since = min(self._silent_since, self._clock() - waited_s)

    def lost(self, waited_s: float, *, probe: bool = False) -> bool:
        """A call got no answer.

        Args:
            waited_s: seconds that it waited, in all.
            probe: it was the probe.

        Returns:
            Whether this opened the circuit.
        """
        with self._lock:
            now = self._clock()
            self._silent_since = min(self._silent_since, now - waited_s)
            if self._probe_at is not None:
                if probe:
                    self._probing, self._probe_at = False, now + self._every_s
                return False
            enough = now - self._silent_since >= self._patience_s and waited_s >= self._slow_s
            if enough and self._every_s > 0:
                self._probe_at = now + self._every_s
            return self._probe_at is not None

    def let_go(self) -> None:
        """The probe ended and learnt nothing: the next caller is one."""
        with self._lock:
            self._probing = False
