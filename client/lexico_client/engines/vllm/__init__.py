"""vLLM: prompt caches are shared by configuration alone.

vllm serve MODEL --kv-transfer-config '{
  "kv_connector": "LexicoConnector",
  "kv_connector_module_path": "lexico_client.engines.vllm",
  "kv_role": "kv_both",
  "kv_load_failure_policy": "recompute",
  "kv_connector_extra_config": {"reload": "host:7412", "offload": "host:7411"}}'

Or as a tier below vLLM's own offloading to the host's memory:

vllm serve MODEL --kv-transfer-config '{
  "kv_connector": "LexicoOffloadingConnector",
  "kv_connector_module_path": "lexico_client.engines.vllm",
  "kv_role": "kv_both",
  "kv_connector_extra_config": {
    "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 10737418240, "block_size": 64,
    "secondary_tiers": [{
      "type": "LexicoTier", "module_path": "lexico_client.engines.vllm",
      "reload": "host:7412", "offload": "host:7411"}]}}'

The classes are imported when they are asked for, since they need vLLM; nothing else here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `__getattr__` gives them
    from lexico_client.engines.vllm.connector import LexicoConnector
    from lexico_client.engines.vllm.tier.connector import LexicoOffloadingConnector
    from lexico_client.engines.vllm.tier.manager import LexicoTier

__all__ = ["LexicoConnector", "LexicoOffloadingConnector", "LexicoTier"]


def __getattr__(name: str) -> Any:
    if name == "LexicoConnector":
        from lexico_client.engines.vllm.connector import LexicoConnector

        return LexicoConnector
    if name == "LexicoOffloadingConnector":
        from lexico_client.engines.vllm.tier.connector import LexicoOffloadingConnector

        return LexicoOffloadingConnector
    if name == "LexicoTier":
        from lexico_client.engines.vllm.tier.manager import LexicoTier

        return LexicoTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
