"""`LexicoL2Adapter` with stopwatches, for LMCache to load in its place: around its tasks,
and around what these call of the service."""

from __future__ import annotations

from typing import Any

from bench.engines.calls import now, write
from lexico_client.engines.lmcache._tasks import Tasks
from lexico_client.engines.lmcache.adapter import LexicoL2Adapter


class TimedL2Adapter(LexicoL2Adapter):
    """Writes `calls`."""

    def __init__(self, params: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        for name in ("match", "load", "offload"):
            self._watch_call(name)
        self._watch_tasks("find", self._finds)
        self._watch_tasks("get", self._loads)
        self._watch_tasks("set", self._stores)

    def _watch_call(self, name: str) -> None:
        """A call of the client, on the adapter's loop."""
        call = getattr(self._service.client, name)

        async def timed(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return await call(*args, **kwargs)
            finally:
                write(name, began)

        setattr(self._service.client, name, timed)

    def _watch_tasks(self, name: str, tasks: Tasks[Any]) -> None:
        """From when LMCache asks for one until it is told of the result."""
        begin, end, began = tasks.begin, tasks.end, dict[int, float]()

        def begun(failed: Any) -> int:
            at = now()
            task = begin(failed)
            began[task] = at
            return task

        def ended(task: int, result: Any = None) -> None:
            end(task, result)
            write(name, began.pop(task))

        tasks.begin, tasks.end = begun, ended  # type: ignore[method-assign]
