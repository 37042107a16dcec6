"""client/lexico_client/engines/vllm/interface.json, out of the vLLM that is installed.

python -m tests.support.vllm_interface    # writes it; run by the Python that has vLLM
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import interface_of
from lexico_client.engines.vllm import _supported

CONNECTOR: Final = Path(_supported.__file__).with_name("connector.py")
CALLED: Final = ("_get_connector_metadata",)
"""Methods of the engine's that the connector calls."""


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
    }


def main() -> None:
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    text = json.dumps(record(KVConnectorBase_V1, vllm.__version__), indent=1)
    _supported.INTERFACE.write_text(text + "\n")


if __name__ == "__main__":
    main()
