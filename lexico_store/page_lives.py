"""How long pages have to live: asked for by people, and by nothing that serves nodes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from lexico_store import checks


class PageLives(ABC):
    """A part of `PageStore`, and raises what that raises."""

    def lives(self, scope: bytes, keys: Sequence[bytes]) -> list[float | None]:
        """Seconds until each page expires: infinite for one that is pinned, None for one that is
        not there. It renews nothing. One round trip.

        Raises:
            ConfigurationError: the store's user may not ask (PTTL of Redis, a right that is not
                needed for anything else).
        """
        names = checks.page_names(scope, keys)
        return [_seconds(left_ms) for left_ms in self._lives(names)] if names else []

    @abstractmethod
    def _lives(self, names: Sequence[str]) -> list[int]:
        """Milliseconds, -1 for what does not expire, -2 for what is not there."""


def _seconds(left_ms: int) -> float | None:
    if left_ms < 0:
        return math.inf if left_ms == -1 else None
    return left_ms / 1000
