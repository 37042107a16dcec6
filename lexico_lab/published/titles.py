"""Names of the methods that are compared, and what papers call them.

Imports nothing: tables and plots are made without a model.
"""

from __future__ import annotations

from typing import Final

OURS: Final = ("lexico-residual", "lexico-packed", "lexico-adaptive", "lexico")
"""Codecs of this project, in the order in which they are shown."""
CODERS: Final = {
    "per_token": "per token",
    "kivi": "KIVI",
    "turboquant": "TurboQuant",
    "zipcache": "ZipCache",
    "kvtc": "KVTC",
    "cachegen": "CacheGen",
    "cskv": "CSKV",
    "mustafar": "Mustafar",
}
"""Published methods that code, as `methods.CODERS` has them."""
EVICTIONS: Final = {
    "streamingllm": "StreamingLLM",
    "knorm": "Knorm",
    "keydiff": "KeyDiff",
    "tova": "TOVA",
    "snapkv": "SnapKV",
    "pyramidkv": "PyramidKV",
    "adakv": "Ada-SnapKV",
    "expected_attention": "Expected Attention",
    "compactor": "Compactor",
    "kvzip": "KVzip",
}
"""Methods of `lexico_lab.published.eviction`."""
