"""Lets SGLang's hierarchical cache run on the CPU in every process that has this folder and the
checkout in PYTHONPATH, by tests/support/sglang_shim.py: SGLang starts processes of its own, and
`python -m examples.sglang` starts engines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Preparing(MetaPathFinder):
    """Prepares what is imported, once it is: nothing is imported for it in other processes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in ("torchvision", "sglang.srt.mem_cache.pool_host.mha"):
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and found.loader is not None:
            _wrap(found.loader, fullname)
        return found


def _wrap(loader: Any, name: str) -> None:
    whole = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        from tests.support import sglang_shim

        if name == "torchvision":
            sglang_shim.before_import()
        whole(module)
        if name != "torchvision":
            sglang_shim.install()

    loader.exec_module = exec_module


sys.meta_path.insert(0, _Preparing())
