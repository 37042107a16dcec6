"""LMCache's L1 memory, keys and events, for processes that have LMCache and answer by lines.

Nothing of LMCache is imported before it is asked for: it prints when it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

Document = dict[str, Any]

RANK: Final = 1 << 24 | 1 << 8
"""`kv_rank` of an engine with one rank."""
_PATIENCE_MS: Final = 600_000


def l1_memory(size: int) -> Any:
    """An `L1Manager` of so many bytes."""
    from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
    from lmcache.v1.distributed.l1_manager import L1Manager

    memory = L1MemoryManagerConfig(size_in_bytes=size, use_lazy=False, shm_name="")
    return L1Manager(L1ManagerConfig(memory_config=memory))


def keys_of(numbers: Iterable[int], model: str, salt: str = "") -> list[Any]:
    """Names of objects, by their numbers."""
    from lmcache.v1.distributed.api import ObjectKey

    hashes = (hashlib.sha256(b"%d" % number).digest() for number in numbers)
    return [ObjectKey(each, model, RANK, 0, salt) for each in hashes]


def named(keys: Sequence[Any], mark: str) -> list[Any]:
    """The same names with a mark, for a memory in which nothing has a name twice."""
    return [replace(key, cache_salt=mark) for key in keys]


def reserved(memory: Any, names: Sequence[Any], layout: Any) -> list[Any]:
    """Objects of the memory that are to be written."""
    made = memory.reserve_write(list(names), [False] * len(names), layout)
    return [made[name][1] for name in names]


def wait_for(notifier: int) -> None:
    """Waits for an event.

    Raises:
        TimeoutError: none came in ten minutes.
    """
    poller = select.poll()
    poller.register(notifier, select.POLLIN)
    if not poller.poll(_PATIENCE_MS):
        raise TimeoutError("no event came")
    os.read(notifier, 8)


def answers() -> Any:
    """Where answers go from now on; what is printed goes to standard error. Before LMCache is
    imported: it prints."""
    found = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return found


def answer_lines(written: Any, actions: Mapping[str, Callable[[Document], Document]]) -> None:
    """Answers the lines of standard input, and ends the process once there are no more.

    Args:
        written: where answers go.
        actions: what `do` of a line names; what one raises is the answer, as `error`.
    """
    for text in sys.stdin:
        line = json.loads(text)
        try:
            said = actions[line["do"]](line)
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            said = {"error": f"{type(error).__name__}: {error}"}
        written.write(json.dumps(said) + "\n")
        written.flush()
    os._exit(0)  # LMCache's threads may be at it
