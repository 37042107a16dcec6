"""LMCache's own classes, without a server and an engine: memory, adapters and serdes, as told.

Run by the Python of the environment that has LMCache, with the checkout in PYTHONPATH:

    python -m tests.support.lmcache_driver

It reads a JSON document a line, and answers with one. `open` makes the L2 adapter of a
specification as LMCache's server does, `store`, `find` and `load` are its tasks, of objects whose
content is drawn by their number. Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any, Final

import torch

Document = dict[str, Any]

PATIENCE_MS: Final = 600_000
RANK: Final = 1 << 24 | 1 << 8


class Driver:
    """One L1 memory, and the adapter that is open."""

    def __init__(self) -> None:
        from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
        from lmcache.v1.distributed.l1_manager import L1Manager

        memory = L1MemoryManagerConfig(size_in_bytes=64 << 20, use_lazy=False, shm_name="")
        self._memory = L1Manager(L1ManagerConfig(memory_config=memory))
        self._adapter: Any = None
        self._numbers = itertools.count()

    def open(self, line: Document) -> Document:
        """As LMCache's storage manager makes an adapter."""
        from lmcache.v1.distributed.l2_adapters import create_l2_adapter
        from lmcache.v1.distributed.l2_adapters.config import (
            L2AdapterConfigBase,
            get_l2_adapter_config_class,
        )
        from lmcache.v1.distributed.l2_adapters.serde_wrapper import SerdeL2AdapterWrapper
        from lmcache.v1.distributed.serde import create_serde_processor

        spec = line["adapter"]
        config = get_l2_adapter_config_class(spec["type"]).from_dict(spec)
        serde = L2AdapterConfigBase._parse_serde_config(spec)
        self._adapter = create_l2_adapter(config, self._memory.get_l1_memory_desc())
        if serde is not None:
            self._adapter = SerdeL2AdapterWrapper(
                self._adapter, create_serde_processor(serde), self._memory
            )
        return {"type": type(self._adapter).__name__}

    def close(self, line: Document) -> Document:
        """Closes the adapter."""
        self._adapter.close()
        return {}

    def store(self, line: Document) -> Document:
        """Stores objects; says whether LMCache takes that for done."""
        keys, objects = self._written(line)
        task = self._adapter.submit_store_task(keys, objects)
        _wait(self._adapter.get_store_event_fd())
        result = self._adapter.pop_completed_store_tasks()[task]
        self._memory.finish_read([self._local(key) for key in keys])
        return {"stored": result.is_successful(), "bytes": result.bytes_transferred()}

    def find(self, line: Document) -> Document:
        """Looks objects up."""
        keys = _keys(line)
        task = self._adapter.submit_lookup_and_lock_task(keys, {0: _layout(line)})
        _wait(self._adapter.get_lookup_and_lock_event_fd())
        found = self._adapter.query_lookup_and_lock_result(task)
        self._adapter.submit_unlock(keys)
        return {"found": [bool(found.test(place)) for place in range(len(keys))]}

    def load(self, line: Document) -> Document:
        """Loads objects; says which came, and which of them are what was stored."""
        keys = _keys(line)
        objects = self._reserved(line, keys)
        for each in objects:
            each.tensor.fill_(7)
        task = self._adapter.submit_load_task(keys, objects)
        _wait(self._adapter.get_load_event_fd())
        came = self._adapter.query_load_result(task)
        contents = zip(objects, line["chunks"], strict=True)
        same = [torch.equal(each.tensor, _content(line, chunk)) for each, chunk in contents]
        self._memory.finish_write_and_delete([self._local(key) for key in keys])
        return {"came": [bool(came.test(place)) for place in range(len(keys))], "same": same}

    def status(self, line: Document) -> Document:
        """What the adapter says of itself."""
        return {"status": self._adapter.report_status()}

    def _written(self, line: Document) -> tuple[list[Any], list[Any]]:
        keys = _keys(line)
        for each, chunk in zip(self._reserved(line, keys), line["chunks"], strict=True):
            each.tensor.copy_(_content(line, chunk))
        local = [self._local(key) for key in keys]
        self._memory.finish_write(local)
        read = self._memory.reserve_read(local)
        return keys, [read[key][1] for key in local]

    def _reserved(self, line: Document, keys: list[Any]) -> list[Any]:
        self._round = next(self._numbers)
        local = [self._local(key) for key in keys]
        made = self._memory.reserve_write(local, [False] * len(local), _layout(line))
        return [made[key][1] for key in local]

    def _local(self, key: Any) -> Any:
        """The name of an object in this memory, where nothing has one twice."""
        from dataclasses import replace

        return replace(key, cache_salt=f"{self._round}")


def _keys(line: Document) -> list[Any]:
    from lmcache.v1.distributed.api import ObjectKey

    hashes = (hashlib.sha256(b"%d" % chunk).digest() for chunk in line["chunks"])
    return [ObjectKey(each, line["model"], RANK, 0, line.get("salt", "")) for each in hashes]


def _layout(line: Document) -> Any:
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    dtype = getattr(torch, line["dtype"])
    return MemoryLayoutDesc(shapes=[torch.Size(line["shape"])], dtypes=[dtype])


def _content(line: Document, chunk: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(chunk)
    dtype = getattr(torch, line["dtype"])
    return torch.randn(line["shape"], generator=generator).to(dtype)


def _wait(notifier: int) -> None:
    poller = select.poll()
    poller.register(notifier, select.POLLIN)
    if not poller.poll(PATIENCE_MS):
        raise TimeoutError("no event came")
    os.read(notifier, 8)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # LMCache prints
    driver = Driver()
    actions: dict[str, Callable[[Document], Document]] = {
        each: getattr(driver, each) for each in ("open", "close", "store", "find", "load", "status")
    }
    answers.write("{}\n")
    answers.flush()
    for text in sys.stdin:
        line = json.loads(text)
        try:
            said = actions[line["do"]](line)
        except Exception as error:  # noqa: BLE001 - the test is told
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
    os._exit(0)  # LMCache's threads may be at it


if __name__ == "__main__":
    main()
