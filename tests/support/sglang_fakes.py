"""As much of SGLang as a storage backend imports, for tests of the backend without it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from types import ModuleType
from typing import Any, Final

from lexico_client.engines.sglang import _supported

STORAGE: Final = "lexico_client.engines.sglang.storage"


@contextmanager
def sglang_of(arguments: Any, version: str = "0.5.23") -> Iterator[type]:
    """`LexicoStorage` over an SGLang that has what was recorded of it, for the block.

    Args:
        arguments: what `get_context` gives.
        version: that it says it is.
    """
    recorded = json.loads(_supported.INTERFACE.read_text())
    namespace: dict[str, Any] = {}
    for name, parameters in recorded["methods"].items():
        exec(f"def {name}({', '.join(parameters)}): ...", namespace)
    methods = {name: namespace[name] for name in recorded["methods"]}
    methods["register_mem_pool_host"] = _registered
    methods["register_mem_host_pool_v2"] = _registered_v2
    hicache = ModuleType("sglang.srt.mem_cache.hicache_storage")
    hicache.HiCacheStorage = type("HiCacheStorage", (), methods)  # type: ignore[attr-defined]
    hicache.STORAGE_BATCH_SIZE = 4  # type: ignore[attr-defined]
    for name, fields in recorded["told"].items():
        setattr(hicache, name, make_dataclass(name, fields))
    context = ModuleType("sglang.srt.runtime_context")
    context.get_context = lambda: arguments  # type: ignore[attr-defined]
    package = ModuleType("sglang")
    package.__version__ = version  # type: ignore[attr-defined]
    fakes = {
        "sglang": package,
        "sglang.srt": ModuleType("sglang.srt"),
        "sglang.srt.mem_cache": ModuleType("sglang.srt.mem_cache"),
        hicache.__name__: hicache,
        context.__name__: context,
    }
    before = {name: sys.modules.get(name) for name in (*fakes, STORAGE)}
    sys.modules.update(fakes)
    sys.modules.pop(STORAGE, None)
    try:
        yield importlib.import_module(STORAGE).LexicoStorage
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def _registered(self: Any, mem_pool_host: Any) -> None:
    self.mem_pool_host = mem_pool_host


def _registered_v2(self: Any, host_pool: Any, host_pool_name: Any) -> None:
    """SGLang keeps them by their names."""
