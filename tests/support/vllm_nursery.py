"""vLLM engines, each in a process of its own that is forked from one which has imported vLLM.

Run by the Python of the environment that has vLLM, with the checkout in PYTHONPATH:

    python -m tests.support.vllm_nursery

It reads a JSON document a line, and answers with one. `start` forks an engine; what follows goes to
that engine, until `end`. Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # vLLM prints
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
    """Imports all that an engine needs, once; its ranks are forked as well."""
    import llvmlite.binding.ffi as ffi
    import vllm  # noqa: F401 - for the children
    from vllm import LLM  # noqa: F401

    # A fork copies it by pickling, which asks it for what it does not have.
    wrapped: Callable[..., Any] = ffi._lib_wrapper.__getattr__

    def found(self: Any, name: str) -> Any:
        if name == "__dict__":
            raise AttributeError(name)
        return wrapped(self, name)

    ffi._lib_wrapper.__getattr__ = found

    # vLLM spawns the ranks of an engine on a CPU, and each would import all of it anew.
    import multiprocessing

    from vllm.v1.executor import multiproc_executor

    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")


def _engine(start: Document, answers: int) -> None:
    from vllm import LLM

    llm = LLM(**start["options"])
    try:
        _say(answers, {"started": True})
        while line := _line():
            if line["do"] == "end":
                break
            _say(answers, _ACTIONS[line["do"]](llm, line))
    finally:
        llm.llm_engine.engine_core.shutdown()


def _generate(llm: Any, line: Document) -> Document:
    """Several prompts at a time, by token ids; their tokens, and how many were in a cache."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": ids, **line.get("prompt", {})} for ids in line["token_ids"]]
    params = SamplingParams(temperature=0, max_tokens=line["max_tokens"], **line.get("params", {}))
    began = time.perf_counter()
    found = llm.generate(prompts, params, use_tqdm=False)
    return {
        "seconds": time.perf_counter() - began,
        "first": [each.metrics.first_token_latency for each in found],
        "tokens": [list(each.outputs[0].token_ids) for each in found],
        "reasons": [each.outputs[0].finish_reason for each in found],
        "cached": [each.num_cached_tokens for each in found],
    }


def _counts(llm: Any, line: Document) -> Document:
    """What this process counted: name and label values → number; and vLLM's own metrics."""
    from lexico_proto.metrics import PROCESS

    counted = {
        " ".join((family.name, *values)): number
        for family, children in PROCESS.snapshot().items()
        for values, number in children.items()
    }
    own = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    return {"counted": counted, "own": own, "shown": _shown()}


def _shown() -> Document:
    """Our families as a scrape of vLLM's server would see them."""
    from prometheus_client import REGISTRY

    return {
        " ".join([sample.name, *(v for n, v in sample.labels.items() if n not in _VLLMS)]): (
            sample.value
        )
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("lexico_") and not sample.name.endswith("_created")
    }


def _settle(llm: Any, line: Document) -> Document:
    """Waits until everything is stored that is to be."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    while has_kv_transfer_group() and get_kv_transfer_group()._worker.stores_under_way:
        time.sleep(0.01)  # each has a deadline
    return {"settled": True}


def _reset(llm: Any, line: Document) -> Document:
    """Empties vLLM's own prefix cache."""
    return {"reset": llm.reset_prefix_cache(**line.get("options", {}))}


def _call(llm: Any, line: Document) -> Document:
    """A function of a module, given the engine: what a benchmark has to do in this process."""
    module, name = line["function"].split(":")
    answer: Document = getattr(importlib.import_module(module), name)(llm, **line["arguments"])
    return answer


_VLLMS = ("model_name", "engine")
"""Labels of vLLM's own."""
_ACTIONS = {
    "generate": _generate,
    "counts": _counts,
    "settle": _settle,
    "reset": _reset,
    "call": _call,
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
