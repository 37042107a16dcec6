"""SGLang engines, each in processes that are forked from one which has imported SGLang.

Run by the Python of the environment that has SGLang, with the checkout and the stand-in for its
kernels in PYTHONPATH:

    python -m tests.support.sglang_nursery

It reads a JSON document a line, and answers with one. `start` forks an engine; what follows goes to
that engine, until `end`. Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Coroutine
from typing import Any

from tests.support import sglang_shim

Document = dict[str, Any]


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # SGLang prints
    _prepare()
    _say(answers, {"ready": True})
    while line := _line():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _engine(line, answers)
                code = 0
            except BaseException as error:  # noqa: BLE001 - the test is told
                traceback.print_exc()
                _say(answers, {"error": str(error), "kind": type(error).__name__})
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.waitpid(pid, 0)
        _say(answers, {"ended": True})


def _prepare() -> None:
    """Imports all that an engine needs, once; sglang_cpu/sitecustomize.py prepares it."""
    import sglang.srt.entrypoints.engine
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.llama  # noqa: F401

    sglang_shim.fork_processes()


def _engine(start: Document, answers: int) -> None:
    import sglang

    engine = sglang.Engine(**start["options"])
    try:
        _say(answers, {"started": True})
        while line := _line():
            if line["do"] == "end":
                break
            _say(answers, _ACTIONS[line["do"]](engine, line))
    finally:
        engine.shutdown()


def _generate(engine: Any, line: Document) -> Document:
    """Several prompts at a time, by token ids; their tokens, and how many were in a cache."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    count = len(line["token_ids"])
    asked = GenerateReqInput(
        input_ids=line["token_ids"],
        sampling_params={
            "temperature": 0,
            "max_new_tokens": line["max_tokens"],
            "ignore_eos": line["ignore_eos"],
        },
        **{name: [value] * count for name, value in line["more"].items()},
    )
    answers = engine.tokenizer_manager.generate_request(asked, None)
    found = engine.loop.run_until_complete(anext(answers))
    told = [each["meta_info"] for each in found]
    return {
        "tokens": [list(each["output_ids"]) for each in found],
        "reasons": [each["finish_reason"]["type"] for each in told],
        "cached": [each["cached_tokens"] for each in told],
        "details": [each.get("cached_tokens_details") or {} for each in told],
        "first": [each["first_token_latency"] for each in told],
        "seconds": [each["e2e_latency"] for each in told],
    }


def _flush(engine: Any, line: Document) -> Document:
    """Empties SGLang's own caches, on device and host."""
    return {"flushed": bool(getattr(engine.flush_cache(), "success", True))}


def _shown(engine: Any, line: Document) -> Document:
    """Our families as a scrape of SGLang's server would see them."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return {
        " ".join([sample.name, *sample.labels.values()]): int(sample.value)
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("lexico_")
    }


def _detach(engine: Any, line: Document) -> Document:
    """Takes the storage backend away, if SGLang has nothing to do with it."""
    return _told(engine, engine.tokenizer_manager.detach_hicache_storage())


def _attach(engine: Any, line: Document) -> Document:
    """Gives SGLang the backend, or another policy of prefetches for the one that it has."""
    work = engine.tokenizer_manager.attach_hicache_storage(
        hicache_storage_backend="dynamic",
        hicache_storage_backend_extra_config_json=line["extra"],
        hicache_storage_prefetch_policy=line["policy"],
    )
    return _told(engine, work)


def _told(engine: Any, work: Coroutine[Any, Any, Any]) -> Document:
    found = engine.loop.run_until_complete(work)
    return {"success": bool(found.success)}


_ACTIONS = {
    "generate": _generate,
    "flush": _flush,
    "shown": _shown,
    "detach": _detach,
    "attach": _attach,
}


def _line() -> Document | None:
    """The next line, and not a byte behind it: that may be for another process."""
    read = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        read += byte
    document: Document | None = json.loads(read) if read else None
    return document


def _say(answers: int, document: Document) -> None:
    data = json.dumps(document).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    main()
