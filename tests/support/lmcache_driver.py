"""LMCache's own classes, without a server and an engine: memory, adapters and serdes, as told.

Run by the Python of the environment that has LMCache, with the checkout in PYTHONPATH:

    python -m tests.support.lmcache_driver [BYTES]

BYTES are of LMCache's memory. It reads a JSON document a line, and answers with one. `open` makes
the L2 adapter of a specification as LMCache's server does, `store`, `find` and `load` are its
tasks, of objects whose content is drawn by their number, or is one of those in a safetensors file.
Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from safetensors import safe_open

from tests.support.lmcache_memory import (
    Document,
    answer_lines,
    answers,
    keys_of,
    l1_memory,
    named,
    reserved,
    wait_for,
)


class Driver:
    """One L1 memory, and the adapter that is open."""

    def __init__(self, size: int) -> None:
        self._memory = l1_memory(size)
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
        wait_for(self._adapter.get_store_event_fd())
        result = self._adapter.pop_completed_store_tasks()[task]
        self._memory.finish_read(self._local(keys))
        return {"stored": result.is_successful(), "bytes": result.bytes_transferred()}

    def find(self, line: Document) -> Document:
        """Looks objects up."""
        keys = _keys(line)
        task = self._adapter.submit_lookup_and_lock_task(keys, {0: _layout(line)})
        wait_for(self._adapter.get_lookup_and_lock_event_fd())
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
        wait_for(self._adapter.get_load_event_fd())
        came = self._adapter.query_load_result(task)
        contents = zip(objects, line["chunks"], strict=True)
        same = [torch.equal(each.tensor, _content(line, chunk)) for each, chunk in contents]
        self._memory.finish_write_and_delete(self._local(keys))
        return {"came": [bool(came.test(place)) for place in range(len(keys))], "same": same}

    def status(self, line: Document) -> Document:
        """What the adapter says of itself."""
        return {"status": self._adapter.report_status()}

    def _written(self, line: Document) -> tuple[list[Any], list[Any]]:
        keys = _keys(line)
        for each, chunk in zip(self._reserved(line, keys), line["chunks"], strict=True):
            each.tensor.copy_(_content(line, chunk))
        local = self._local(keys)
        self._memory.finish_write(local)
        read = self._memory.reserve_read(local)
        return keys, [read[key][1] for key in local]

    def _reserved(self, line: Document, keys: list[Any]) -> list[Any]:
        self._round = next(self._numbers)
        return reserved(self._memory, self._local(keys), _layout(line))

    def _local(self, keys: list[Any]) -> list[Any]:
        """The names of objects in this memory."""
        return named(keys, f"{self._round}")


def _keys(line: Document) -> list[Any]:
    return keys_of(line["chunks"], line["model"], line.get("salt", ""))


def _layout(line: Document) -> Any:
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    dtype = getattr(torch, line["dtype"])
    return MemoryLayoutDesc(shapes=[torch.Size(line["shape"])], dtypes=[dtype])


def _content(line: Document, chunk: int) -> torch.Tensor:
    if "contents" in line:
        with safe_open(line["contents"], framework="pt") as file:
            names = sorted(file.keys(), key=int)
            return file.get_tensor(names[chunk % len(names)])
    generator = torch.Generator().manual_seed(chunk)
    dtype = getattr(torch, line["dtype"])
    return torch.randn(line["shape"], generator=generator).to(dtype)


def main() -> None:
    written = answers()
    driver = Driver(int(sys.argv[1]) if sys.argv[1:] else 64 << 20)
    written.write("{}\n")
    written.flush()
    names = ("open", "close", "store", "find", "load", "status")
    answer_lines(written, {each: getattr(driver, each) for each in names})


if __name__ == "__main__":
    main()
