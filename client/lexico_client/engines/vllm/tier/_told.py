"""What the engine's connector tells the tiers that are made below it.

vLLM gives a tier no more than names, sizes and ranks, which do not say how weights were loaded or
how blocks are hashed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

_ENGINE: Final[ContextVar[Any]] = ContextVar("lexico_vllm_engine", default=None)


@contextmanager
def telling(config: Any) -> Iterator[None]:
    """For the block, `engine_config` gives this `VllmConfig`."""
    token = _ENGINE.set(config)
    try:
        yield
    finally:
        _ENGINE.reset(token)


def engine_config() -> Any:
    """The `VllmConfig` of the engine whose tiers are being made; None where nobody tells."""
    return _ENGINE.get()
