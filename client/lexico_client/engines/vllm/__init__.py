"""vLLM: prompt caches are shared by configuration alone.

vllm serve MODEL --kv-transfer-config '{
  "kv_connector": "LexicoConnector",
  "kv_connector_module_path": "lexico_client.engines.vllm",
  "kv_role": "kv_both",
  "kv_load_failure_policy": "recompute",
  "kv_connector_extra_config": {"reload": "host:7412", "offload": "host:7411"}}'

The class is imported when it is asked for, since it needs vLLM; nothing else here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `__getattr__` gives it
    from lexico_client.engines.vllm.connector import LexicoConnector

__all__ = ["LexicoConnector"]


def __getattr__(name: str) -> Any:
    if name == "LexicoConnector":
        from lexico_client.engines.vllm.connector import LexicoConnector

        return LexicoConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
