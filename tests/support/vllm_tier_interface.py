"""client/lexico_client/engines/vllm/tier/interface.json, out of the vLLM that is installed.

python -m tests.support.vllm_tier_interface    # writes it; run by the Python that has vLLM
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import interface_of
from lexico_client.engines.vllm.tier import _supported

CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "SecondaryTierManager": ("manager.py", "LexicoTier"),
    "OffloadingConnector": ("connector.py", "LexicoOffloadingConnector"),
}
"""vLLM's class → file and name of ours below it."""
TOLD: Final[Mapping[str, tuple[str, ...]]] = {
    "OffloadingConfig": (
        "groups",
        "worker_kv_bytes_per_block",
        "model",
        "cache",
        "parallel",
        "replicated_layout",
        "canonical_layout",
        "kv_cache_layout",
    ),
    "OffloadingGroupConfig": ("tokens_per_block", "layer_names"),
    "OffloadingModelConfig": ("name", "dtype"),
    "OffloadingCacheConfig": ("blocks_per_chunk",),
    "OffloadingParallelConfig": (
        "world_size",
        "tp_size",
        "pp_size",
        "pcp_size",
        "dcp_size",
        "is_parallelism_agnostic",
    ),
    "TransferJob": ("job_id", "keys", "chunk_ids"),
    "JobResult": ("job_id", "success", "successful_keys", "transfer_time", "transfer_bytes"),
    "LookupResult": ("MISS", "HIT", "RETRY"),
}
"""Fields and members that the tier reads or gives."""


def overridden(file: str, name: str) -> list[str]:
    """Methods that a class of ours has in place of the engine's, or beside them."""
    tree = ast.parse(Path(_supported.__file__).with_name(file).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return [each.name for each in found.body if isinstance(each, ast.FunctionDef)]


def record(bases: Iterable[type], version: str) -> dict[str, Any]:
    """What is relied upon."""
    classes = {}
    for base in bases:
        found = interface_of(base)
        names = [name for name in overridden(*CLASSES[base.__name__]) if name in found]
        classes[base.__name__] = {
            "abstract": sorted(getattr(base, "__abstractmethods__", frozenset())),
            "methods": {name: found[name] for name in sorted(names)},
        }
    told = {name: list(parts) for name, parts in TOLD.items()}
    return {"vllm": version, "classes": classes, "told": told}


def main() -> None:
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
        OffloadingConnector,
    )
    from vllm.v1.kv_offload.tiering.base import SecondaryTierManager

    found = record((SecondaryTierManager, OffloadingConnector), vllm.__version__)
    _supported.INTERFACE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
