"""Pages that an engine names by hashes of its own, where an adapter is told no token ids.

SGLang's storage backends, LMCache's adapters and vLLM's secondary tiers are given one hash a page.
Such a page goes the way of every other: its token ids are zeros, and the hash stands for what
reached the model in it. So neither the wire nor a server knows of it, and it never has the key of
a page of token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lexico_codec.inputs import PageInputs
from lexico_proto.errors import InvalidInput
from lexico_proto.limits import DIGEST_BYTES

MIN_HASH_BYTES: Final = 16
"""Shorter hashes meet by chance, and by intent: pages of two prompts would have one key."""


def hashed_pages(
    scheme: str, hashes: Sequence[bytes], page_tokens: int
) -> tuple[npt.NDArray[np.uint32], PageInputs]:
    """Token ids and inputs that stand for pages of an engine's own hashes.

    Both go to `match`, `offload` and `load` as those of a prompt do. The pages are chained, as
    those of a prompt are: the hashes are of consecutive pages, from the first of the sequence on.
    Where an engine tells a page's hash and not the ones before, each page is a sequence of its own.
    Its codec must be one that asks for no position, `Codec.without_positions`.

    Args:
        scheme: how the engine makes its hashes, with whatever goes into them beside the tokens.
            Pages of one scheme are shared; change it when the engine's hashes change.
        hashes: one a page, `MIN_HASH_BYTES` or more, each binding all tokens up to its page's end.
        page_tokens: tokens a page, as in the spec.

    Returns:
        `len(hashes) * page_tokens` token ids, all zero, and a digest for each page.

    Raises:
        InvalidInput: a hash that is too short to tell prompts apart, or no scheme.
    """
    if not scheme:
        raise InvalidInput("hashed pages: a scheme is needed, so that hashes of two engines differ")
    short = min(map(len, hashes), default=MIN_HASH_BYTES)
    if short < MIN_HASH_BYTES:
        raise InvalidInput(
            f"hashed pages: a hash of {short} bytes; {MIN_HASH_BYTES} are needed to tell prompts "
            "apart: let the engine use a cryptographic hash, such as SHA-256"
        )
    name = scheme.encode()
    digests = (_digest(name, each) for each in hashes)
    return (
        np.zeros(len(hashes) * page_tokens, dtype="<u4"),
        PageInputs.of(digests, (), page_tokens),
    )


def _digest(scheme: bytes, page_hash: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-hashed")
    digest.update(len(scheme).to_bytes(8, "little") + scheme + page_hash)
    return digest.digest()
