"""The published methods, one module a paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lexico_lab.published import (
    cachegen,
    cskv,
    kivi,
    kvtc,
    mustafar,
    per_token,
    turboquant,
    zipcache,
)
from lexico_lab.published.coder import Coder

CODERS: Final[dict[str, Callable[[], list[Coder]]]] = {
    "per_token": per_token.coders,
    "kivi": kivi.coders,
    "turboquant": turboquant.coders,
    "zipcache": zipcache.coders,
    "kvtc": kvtc.coders,
    "cachegen": cachegen.coders,
    "cskv": cskv.coders,
    "mustafar": mustafar.coders,
}
"""Those that code, by the name of their module: every setting worth plotting, not calibrated.
Those that evict are `eviction.evictions`."""
