"""client/lexico_client/engines/vllm/interface.json, out of the vLLM that is installed.

python -m tests.support.vllm_interface    # writes it; run by the Python that has vLLM
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import interface_of
from lexico_client.engines.vllm import _scheduler, _supported

CONNECTOR: Final = Path(_supported.__file__).with_name("connector.py")
CALLED: Final = ("_get_connector_metadata",)
"""Methods of the engine's that the connector calls."""


TOLD: Final[Mapping[str, tuple[str, ...]]] = {
    "SchedulerOutput": (
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "preempted_req_ids",
        "has_sync_kv_loads",
    ),
    "NewRequestData": ("req_id", "block_ids", "num_computed_tokens"),
    "CachedRequestData": ("req_ids", "resumed_req_ids", "new_block_ids", "num_computed_tokens"),
    "KVConnectorOutput": ("invalid_block_ids",),
    "Request": (
        "request_id",
        "num_tokens",
        "num_output_tokens",
        "all_token_ids",
        "cache_salt",
        "lora_request",
        "mm_features",
        "prompt_token_ids",
        "prompt_embeds",
        "pooling_params",
        "skip_reading_prefix_cache",
    ),
}
"""What the connector reads of what it is told."""


def read_of(argument: str, kind: str) -> list[str]:
    """Attributes of an argument of that name that the scheduler's side reads.

    Args:
        argument: name.
        kind: class of the engine's, for the message.
    """
    tree = ast.parse(Path(_scheduler.__file__).read_text())
    found = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == argument
    ]
    assert found, f"nothing is read of a {kind}"
    return found


def overridden() -> list[str]:
    """Methods that the connector has in place of the engine's, or beside them."""
    tree = ast.parse(CONNECTOR.read_text())
    (connector,) = (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "LexicoConnector"
    )
    return [each.name for each in connector.body if isinstance(each, ast.FunctionDef)]


def record(base: type, version: str) -> dict[str, Any]:
    """What is relied upon of a base class."""
    found = interface_of(base)
    names = [name for name in (*overridden(), *CALLED) if name in found]
    return {
        "vllm": version,
        "abstract": sorted(getattr(base, "__abstractmethods__", frozenset())),
        "methods": {name: found[name] for name in sorted(names)},
        "told": {name: list(parts) for name, parts in TOLD.items()},
    }


def main() -> None:
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    text = json.dumps(record(KVConnectorBase_V1, vllm.__version__), indent=1)
    _supported.INTERFACE.write_text(text + "\n")


if __name__ == "__main__":
    main()
