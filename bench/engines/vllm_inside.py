"""Stopwatches in a vLLM engine's own process, around what it calls of our connector, and around
what that calls of the service. `tests.support.vllm_nursery` has them called."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

Document = dict[str, Any]

SCHEDULER: Final = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished",
    "get_kv_connector_stats",
)
WORKER: Final = (
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "wait_for_save",
    "get_finished",
    "get_block_ids_with_load_errors",
    "get_kv_connector_stats",
)

_ASKING: Final = ("on_new_request", "get_num_new_matched_tokens")
"""Without these a request is not known to the connector."""


class Stopwatches:
    """Of one engine, for one request at a time."""

    def __init__(self, scheduler: Any, worker: Any) -> None:
        self.scheduler = scheduler
        self.seconds: dict[str, float] = defaultdict(float)
        self._asked: float | None = None
        self._ordered = 0.0
        self._alone = False
        for connector, names in ((scheduler, SCHEDULER), (worker, WORKER)):
            for name in names:
                self._time(connector, name)
        self._call(scheduler._service.client, "match")
        self._call(worker._service.client, "load")

    def alone(self, on: bool) -> None:
        """Whether the engine is as without us: the scheduler is told of nothing, and no request is
        known to the connector."""
        self._alone = on

    def taken(self) -> Document:
        """Seconds since this was last called."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def _time(self, connector: Any, name: str) -> None:
        """What the engine's thread spends in a method."""
        method: Callable[..., Any] = getattr(connector, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._alone and name in _ASKING:
                return (0, False)
            began = time.perf_counter()
            found = method(*args, **kwargs)
            ended = time.perf_counter()
            self.seconds["thread"] += ended - began
            self.seconds[f"thread {name}"] += ended - began
            self._seen(name, args, kwargs, found, began, ended)
            return found

        setattr(connector, name, timed)

    def _seen(
        self, name: str, args: Any, kwargs: Any, found: Any, began: float, ended: float
    ) -> None:
        """How long a request was held for its match, and for its load."""
        if name == "on_new_request":
            self._asked = began
        elif name == "get_num_new_matched_tokens" and found[0] is not None:
            if self._asked is not None:
                self.seconds["held"] += ended - self._asked
            self._asked = None
        elif name == "update_state_after_alloc" and (args + tuple(kwargs.values()))[-1]:
            self._ordered = began
        elif name == "get_finished" and found[1]:
            self.seconds["loading"] += ended - self._ordered

    def _call(self, client: Any, name: str) -> None:
        """What a call of the client takes, on the connector's loop."""
        call: Callable[..., Any] = getattr(client, name)

        async def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return await call(*args, **kwargs)
            finally:
                self.seconds[f"call {name}"] += time.perf_counter() - began

        setattr(client, name, timed)


_watches: list[Stopwatches] = []


def watch(llm: Any) -> Document:
    """Sets them up."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    core = llm.llm_engine.engine_core.engine_core
    _watches.append(Stopwatches(core.scheduler.connector, get_kv_transfer_group()))
    return {}


def taken(llm: Any) -> Document:
    """What they say since this was last called."""
    return _watches[-1].taken()


def doing(llm: Any, shares: bool, stores: bool) -> Document:
    """Whether prompts are shared from now on at all, and whether they are stored."""
    _watches[-1].alone(not shares)
    _watches[-1].scheduler._scheduler._stores = stores
    return {}


def threads(llm: Any) -> Document:
    """Threads that the engine computes with."""
    import torch

    return {"threads": torch.get_num_threads()}
