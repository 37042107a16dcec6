"""client/lexico_client/engines/sglang/interface.json, out of the SGLang that is installed.

python -m tests.support.sglang_interface    # writes it; run by the Python that has SGLang
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import interface_of
from lexico_client.engines.sglang import _supported

STORAGE: Final = Path(_supported.__file__).with_name("storage.py")
TOLD: Final = {
    "HiCacheStorageConfig": (
        "tp_size",
        "pp_size",
        "attn_cp_size",
        "is_mla_model",
        "tp_lcm_size",
        "dcp_size",
        "enable_storage_metrics",
        "extra_config",
    )
}
"""Fields that the backend reads."""


def overridden() -> list[str]:
    """Methods that the backend has in place of the engine's, or beside them."""
    tree = ast.parse(STORAGE.read_text())
    (storage,) = (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "LexicoStorage"
    )
    return [each.name for each in storage.body if isinstance(each, ast.FunctionDef)]


def record(base: type, version: str) -> dict[str, Any]:
    """What is relied upon of a base class."""
    found = interface_of(base)
    names = [name for name in overridden() if name in found and name != "__init__"]
    return {
        "sglang": version,
        "abstract": sorted(getattr(base, "__abstractmethods__", frozenset())),
        "methods": {name: found[name] for name in sorted(names)},
        "told": {name: list(fields) for name, fields in TOLD.items()},
    }


def main() -> None:
    from tests.support import sglang_shim

    sglang_shim.before_import()
    import sglang
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

    text = json.dumps(record(HiCacheStorage, sglang.__version__), indent=1)
    _supported.INTERFACE.write_text(text + "\n")


if __name__ == "__main__":
    main()
