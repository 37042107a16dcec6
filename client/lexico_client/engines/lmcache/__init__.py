"""LMCache's MP server: its objects go to the service, or are coded for LMCache's own adapters.

An L2 adapter, which stores with the service and loads from it:

lmcache server --l2-adapter '{"type": "plugin",
  "module_path": "lexico_client.engines.lmcache", "class_name": "LexicoL2Adapter",
  "adapter_params": {"reload": "host:7412", "offload": "host:7411"}}'

And a serde of the name `lexico`, for any other adapter: see `LMCacheAdapter`.

The classes are imported when they are asked for, since they need LMCache; nothing else here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `__getattr__` gives them
    from lexico_client.engines.lmcache.adapter import LexicoL2Adapter
    from lexico_client.engines.lmcache.serde import LMCacheAdapter

__all__ = ["LMCacheAdapter", "LexicoL2Adapter"]


def __getattr__(name: str) -> Any:
    if name == "LexicoL2Adapter":
        from lexico_client.engines.lmcache.adapter import LexicoL2Adapter

        return LexicoL2Adapter
    if name == "LMCacheAdapter":
        from lexico_client.engines.lmcache.serde import LMCacheAdapter

        return LMCacheAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
