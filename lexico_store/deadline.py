"""Until when a store call of this thread may go on: its caller's time, not the store's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_until: Final[ContextVar[float]] = ContextVar("lexico_store_until", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Store calls in this block try nothing anew after `seconds`, nor wait longer for an answer.

    Of blocks in each other the shortest counts. What has begun to arrive is still received.
    """
    token = _until.set(min(_until.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until.reset(token)


def remaining_s() -> float:
    """Seconds that are left: below 0 once they are over, infinite outside of `within`."""
    return _until.get() - time.monotonic()
