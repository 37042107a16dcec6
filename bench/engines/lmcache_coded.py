"""LMCache's serdes at work on objects of a file, in LMCache's own memory and processors.

Run by the Python of the environment that has LMCache, with the checkout in PYTHONPATH:

    python -m bench.engines.lmcache_coded

It reads a JSON document a line, and answers with one. `check` compares the stand-ins for
TurboQuant's kernels with these, `code` has the objects of a file coded and decoded by a serde.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

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

_MEMORY: Final = 512 << 20


class Coded:
    """One L1 memory, and the serdes that were asked for."""

    def __init__(self) -> None:
        import lexico_client.engines.lmcache.serde  # noqa: F401 - it registers `lexico`

        self._memory = l1_memory(_MEMORY)
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
        from lmcache.v1.distributed.api import MemoryLayoutDesc
        from lmcache.v1.distributed.serde import serialized_layout_desc

        objects: Tensor = torch.load(line["file"])
        serde = self._serde(line["serde"])
        keys = keys_of(range(len(objects)), line["model"])
        layout = MemoryLayoutDesc(shapes=[objects.shape[1:]], dtypes=[objects.dtype])
        sources, targets = self._reserve("source", keys, layout), self._reserve("to", keys, layout)
        coded = self._reserve("coded", keys, serialized_layout_desc(layout, serde))
        for each, content in zip(sources, objects, strict=True):
            each.tensor.copy_(content)
        task = serde.submit_serialize(sources, coded, keys)
        wait_for(serde.get_serialize_event_fd())
        done = serde.query_serialize_result(task)
        task = serde.submit_deserialize(coded, targets, keys)
        wait_for(serde.get_deserialize_event_fd())
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
        local = named(keys, what)
        self._reserved += local
        return reserved(self._memory, local, layout)


def _frames(data: Any) -> int:
    """Bytes of the frames of an object of ours."""
    from lexico_client.engines.lmcache._coded import _frames as frames_of

    return sum(len(frame) for frame in frames_of(memoryview(data).cast("B")))


def main() -> None:
    """Answers lines until there are no more."""
    written = answers()
    coded = Coded()
    answer_lines(written, {each: getattr(coded, each) for each in ("check", "code")})


if __name__ == "__main__":
    main()
