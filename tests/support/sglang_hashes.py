"""SGLang's hashes of pages, made anew: a test that finds pages by them knows what they bind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def page_hashes(token_ids: Sequence[int], page_tokens: int, seed: bytes = b"") -> list[bytes]:
    """SHA-256 over the hash of the page before and the page's token ids, for each full page.

    Args:
        token_ids: of a prompt.
        page_tokens: tokens a page.
        seed: in place of a page before the first.
    """
    found: list[bytes] = []
    for first in range(0, len(token_ids) // page_tokens * page_tokens, page_tokens):
        page = np.asarray(token_ids[first : first + page_tokens], dtype="<u4").tobytes()
        found.append(hashlib.sha256((found[-1] if found else seed) + page).digest())
    return found
