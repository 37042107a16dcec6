"""LMCache's serdes at work on objects of a file, in LMCache's own memory and processors.

Run by the Python of the environment that has LMCache, with the checkout in PYTHONPATH:

    python -m bench.engines.lmcache_coded

It reads a JSON document a line, and answers with one. `check` compares the stand-ins for
TurboQuant's kernels with these, `code` has the objects of a file coded and decoded by a serde.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

Document = dict[str, Any]

RANK: Final = 1 << 24 | 1 << 8
_MEMORY: Final = 512 << 20
_PATIENCE_MS: Final = 600_000


class Coded:
    """One L1 memory, and the serdes that were asked for."""

    def __init__(self) -> None:
        from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
        from lmcache.v1.distributed.l1_manager import L1Manager

        import lexico_client.engines.lmcache.serde  # noqa: F401 - it registers `lexico`

        memory = L1MemoryManagerConfig(size_in_bytes=_MEMORY, use_lazy=False, shm_name="")
        self._memory = L1Manager(L1ManagerConfig(memory_config=memory))
        self._serdes: dict[str, Any] = {}
        self._twins = False
        self._reserved: list[Any] = []

    def check(self, line: Document) -> Document:
        """The twins against the kernels."""
        from bench.engines import lmcache_turboquant

        some = torch.load(line["file"])[0][:, : line["layers"], : line["tokens"]]
        return lmcache_turboquant.check(some)

    def code(self, line: Document) -> Document:
        """Codes the objects of a file, and writes what comes back to another.

        Returns:
            Bytes of each object, and of ours those of its frames.
        """
        from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
        from lmcache.v1.distributed.serde import serialized_layout_desc

        objects: Tensor = torch.load(line["file"])
        serde = self._serde(line["serde"])
        keys = [
            ObjectKey(hashlib.sha256(b"%d" % number).digest(), line["model"], RANK, 0, "")
            for number in range(len(objects))
        ]
        layout = MemoryLayoutDesc(shapes=[objects.shape[1:]], dtypes=[objects.dtype])
        sources, targets = self._reserve("source", keys, layout), self._reserve("to", keys, layout)
        coded = self._reserve("coded", keys, serialized_layout_desc(layout, serde))
        for each, content in zip(sources, objects, strict=True):
            each.tensor.copy_(content)
        task = serde.submit_serialize(sources, coded, keys)
        _wait(serde.get_serialize_event_fd())
        done = serde.query_serialize_result(task)
        task = serde.submit_deserialize(coded, targets, keys)
        _wait(serde.get_deserialize_event_fd())
        if not (done and serde.query_deserialize_result(task)):
            raise ValueError(f"{line['serde']}: LMCache says that it failed")
        found: Document = {"bytes": [each.get_size() for each in coded]}
        if line["serde"]["type"] == "lexico":
            found["frames"] = [_frames(each.byte_array) for each in coded]
        torch.save(torch.stack([each.tensor for each in targets]), line["out"])
        self._memory.finish_write_and_delete(self._reserved)
        self._reserved.clear()
        return found

    def _serde(self, settings: Document) -> Any:
        from lmcache.v1.distributed.serde import create_serde_processor
        from lmcache.v1.distributed.serde.base import SerdeConfig

        if settings["type"] == "turboquant" and not self._twins:
            from bench.engines import lmcache_turboquant

            lmcache_turboquant.install()
            self._twins = True
        name = json.dumps(settings, sort_keys=True)
        if name not in self._serdes:
            kwargs = {key: value for key, value in settings.items() if key != "type"}
            self._serdes[name] = create_serde_processor(SerdeConfig(settings["type"], kwargs))
        return self._serdes[name]

    def _reserve(self, what: str, keys: Sequence[Any], layout: Any) -> list[Any]:
        from dataclasses import replace

        local = [replace(key, cache_salt=what) for key in keys]
        made = self._memory.reserve_write(local, [False] * len(local), layout)
        self._reserved += local
        return [made[key][1] for key in local]


def _frames(data: Any) -> int:
    """Bytes of the frames of an object of ours."""
    from lexico_client.engines.lmcache._coded import _frames as frames_of

    return sum(len(frame) for frame in frames_of(memoryview(data).cast("B")))


def _wait(notifier: int) -> None:
    poller = select.poll()
    poller.register(notifier, select.POLLIN)
    if not poller.poll(_PATIENCE_MS):
        raise TimeoutError("no event came")
    os.read(notifier, 8)


def main() -> None:
    """Answers lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # LMCache prints
    coded = Coded()
    actions: dict[str, Callable[[Document], Document]] = {
        each: getattr(coded, each) for each in ("check", "code")
    }
    for text in sys.stdin:
        line = json.loads(text)
        try:
            said = actions[line["do"]](line)
        except Exception as error:  # noqa: BLE001 - the benchmark is told
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
    os._exit(0)  # LMCache's threads may be at it


if __name__ == "__main__":
    main()
