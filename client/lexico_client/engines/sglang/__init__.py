"""SGLang: prompt caches are shared by configuration alone.

python -m sglang.launch_server --model-path MODEL --page-size 64 \\
  --enable-hierarchical-cache --hicache-storage-backend dynamic \\
  --hicache-storage-backend-extra-config '{
    "backend_name": "lexico", "module_path": "lexico_client.engines.sglang",
    "class_name": "LexicoStorage", "interface_v1": 1,
    "reload": "host:7412", "offload": "host:7411"}'

The class is imported when it is asked for, since it needs SGLang; nothing else here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `__getattr__` gives it
    from lexico_client.engines.sglang.storage import LexicoStorage

__all__ = ["LexicoStorage"]


def __getattr__(name: str) -> Any:
    if name == "LexicoStorage":
        from lexico_client.engines.sglang.storage import LexicoStorage

        return LexicoStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
