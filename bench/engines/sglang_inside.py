"""`LexicoStorage` with stopwatches, for SGLang to load in its place: around what SGLang calls of
it, and around what that calls of the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.engines import calls
from lexico_client.engines.sglang.storage import LexicoStorage


class TimedStorage(LexicoStorage):
    """Writes `calls`."""

    def __init__(self, storage_config: Any, kwargs: dict[str, Any]) -> None:
        super().__init__(storage_config, kwargs)
        for name in ("match", "load", "offload"):
            self._watch(name)

    def batch_exists(self, *args: Any, **kwargs: Any) -> int:
        found: int = _timed("exists", super().batch_exists, *args, **kwargs)
        return found

    def batch_get_v1(self, *args: Any, **kwargs: Any) -> list[bool]:
        found: list[bool] = _timed("get", super().batch_get_v1, *args, **kwargs)
        return found

    def batch_set_v1(self, *args: Any, **kwargs: Any) -> list[bool]:
        found: list[bool] = _timed("set", super().batch_set_v1, *args, **kwargs)
        return found

    def _watch(self, name: str) -> None:
        """A call of the client, on the backend's loop."""
        call = getattr(self._service.client, name)

        async def timed(*args: Any, **kwargs: Any) -> Any:
            began = calls.now()
            try:
                return await call(*args, **kwargs)
            finally:
                # What is about to be stored is asked about as well.
                calls.write("renew" if kwargs.get("renew") else name, began)

        setattr(self._service.client, name, timed)


def _timed(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    began = calls.now()
    try:
        return call(*args, **kwargs)
    finally:
        calls.write(name, began)
