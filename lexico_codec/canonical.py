"""Text of which equal documents have equal bytes: what digests and namespaces are made of."""

from __future__ import annotations

import json


def canonical_json(document: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal documents give equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
