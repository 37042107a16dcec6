"""tests/fixtures/vllm_newest.json: vLLM's newest release, as far as connector and tier meet it.

python -m tests.support.vllm_newest    # writes it; run by a Python that has that release's modules

Its wheel for CUDA will do, unpacked before an older CPU build's on the path: nothing is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import interface_of

RECORD: Final = Path(__file__).parent.parent / "fixtures" / "vllm_newest.json"


def main() -> None:
    import vllm
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
        OffloadingConnector,
    )
    from vllm.v1.kv_offload.tiering.base import SecondaryTierManager

    from lexico_client.engines.vllm import _supported, connector
    from lexico_client.engines.vllm.tier import manager
    from lexico_client.engines.vllm.tier._supported import parts_of

    bases = (KVConnectorBase_V1, SecondaryTierManager, OffloadingConnector)
    found: dict[str, Any] = {
        "vllm": vllm.__version__,
        "classes": {
            base.__name__: {
                "abstract": sorted(getattr(base, "__abstractmethods__", frozenset())),
                "methods": interface_of(base),
            }
            for base in bases
        },
        "told": {
            **{each.__name__: sorted(_supported.parts_told(each)) for each in connector.TOLD},
            **{each.__name__: sorted(parts_of(each)) for each in manager.TOLD},
        },
    }
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
