"""Page keys: equal keys mean equal prefixes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lexico_codec.identity import Identity
from lexico_codec.inputs import PageDigests, checked_inputs
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import TokenCountMismatch
from lexico_proto.limits import DIGEST_BYTES

TokenIds = Sequence[int] | npt.NDArray[np.integer]


def token_array(token_ids: TokenIds) -> npt.NDArray[np.uint32]:
    """Token ids as little-endian uint32, `[tokens]`.

    Raises:
        TokenCountMismatch: not one-dimensional, not integers, or outside 0..2^32-1.
    """
    try:
        ids = np.asarray(token_ids)
    except ValueError as error:  # rows of different lengths
        raise TokenCountMismatch("token ids must be a flat sequence of integers") from error
    except (TypeError, RuntimeError) as error:  # a tensor that requires grad, or on a device
        raise TokenCountMismatch(
            f"token ids must be a flat sequence of integers in the host's memory: {error}; of a "
            "tensor give .tolist()"
        ) from error
    if ids.size == 0:
        return np.empty(0, dtype="<u4")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TokenCountMismatch("token ids must be a flat sequence of integers")
    if int(ids.min()) < 0 or int(ids.max()) >= 1 << 32:
        raise TokenCountMismatch("token ids must lie in 0..2^32-1")
    return ids.astype("<u4")


def page_keys(
    spec: CacheSpec | Identity,
    token_ids: TokenIds,
    inputs: PageDigests = (),
    *,
    parent: bytes = b"",
) -> list[bytes]:
    """Keys of every full page of a sequence, or of a part of one.

    A page's key is BLAKE2b-256(parent key, token ids of the page as little-endian uint32), and
    where something else reached the model in it, its digest behind, under another personalisation.
    The first parent is the namespace. The chain makes a key stand for the whole prefix, and for all
    that the namespace binds.

    Args:
        spec: what the pages belong to.
        token_ids: the sequence from position 0, or from the page after `parent` on; tokens after
            the last full page count for nothing.
        inputs: what reached the model beside token ids, see `lexico_codec.inputs.input_digests`:
            for the pages of `token_ids`.
        parent: key of the page before the first one; empty where that is page 0.

    Returns:
        `len(token_ids) // spec.page_tokens` keys of 32 bytes.

    Raises:
        TokenCountMismatch: `token_ids` is no flat sequence of token ids.
        InvalidInput: a digest that is neither empty nor 32 bytes.
    """
    ids = token_array(token_ids)
    pages = len(ids) // spec.page_tokens
    digests = checked_inputs(inputs, pages, spec.page_tokens)
    parent = parent or spec.namespace
    keys: list[bytes] = []
    for page in range(pages):
        tokens = ids[page * spec.page_tokens : (page + 1) * spec.page_tokens]
        others = digests[page] if page < len(digests) else b""
        person = b"lexico-page-in" if others else b"lexico-page"
        digest = hashlib.blake2b(parent, digest_size=DIGEST_BYTES, person=person)
        digest.update(tokens.tobytes() + others)
        parent = digest.digest()
        keys.append(parent)
    return keys
