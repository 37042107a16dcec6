"""Sequences of any length, in parts that one call takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lexico_codec.identity import Identity
from lexico_codec.inputs import PageDigests
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec
from lexico_proto.limits import DIGEST_BYTES, MAX_CALL_PAGES, PIECE_BYTES

CHAIN_BYTES: Final = PIECE_BYTES
"""What the token ids and page keys of one Put's header may take. The rest of a message is for the
spec, which takes a few KB."""

_ID_BYTES: Final = 5
"""Most bytes of a token id, or of a page's index, as protobuf writes them."""
_PAGE_BYTES: Final = _ID_BYTES + 2 * (DIGEST_BYTES + 2)
"""Most bytes of what else a header says of a page: its index, its key, and another digest."""


def parts(pages: int, most: int = MAX_CALL_PAGES) -> Iterator[range]:
    """The pages of a sequence, in runs of at most so many."""
    for first in range(0, pages, most):
        yield range(first, min(first + most, pages))


def pages_of_put(spec: CacheSpec) -> int:
    """Pages of a sequence that one Put speaks of: its header fits, whatever the token ids are."""
    return min(MAX_CALL_PAGES, CHAIN_BYTES // (_ID_BYTES * spec.page_tokens + _PAGE_BYTES))


def chain_bytes(token_ids: npt.NDArray[np.uint32], pages: int) -> int:
    """What token ids and so many pages take in a header, or a little more."""
    longer = sum(int((token_ids >= 1 << bits).sum()) for bits in (7, 14, 21, 28))
    return len(token_ids) + longer + pages * _PAGE_BYTES


async def keys_of(
    spec: CacheSpec | Identity,
    token_ids: npt.NDArray[np.uint32],
    inputs: PageDigests = (),
    *,
    apart: bool = False,
) -> list[bytes]:
    """The keys of every full page of a sequence. Other calls of the event loop go on meanwhile: a
    million tokens take a part of a second.

    Args:
        spec, token_ids, inputs: as for `page_keys`.
        apart: each page is a sequence of its own.
    """
    keys: list[bytes] = []
    size = spec.page_tokens
    for part in parts(len(token_ids) // size):
        for run in ([page] for page in part) if apart else [part]:
            ids = token_ids[run[0] * size : (run[-1] + 1) * size]
            others = inputs[run[0] : run[-1] + 1]
            parent = keys[-1] if keys and not apart else b""
            keys += page_keys(spec, ids, others, parent=parent)
        await asyncio.sleep(0)
    return keys


def first_page_of(
    spec: CacheSpec, token_ids: npt.NDArray[np.uint32], part: range, pages: Sequence[int]
) -> int:
    """Where the token ids of a Put of these pages begin: at 0 if they fit from there.

    Servers of before 0.1 know no other beginning.

    Args:
        spec: what the pages belong to.
        token_ids: of the whole sequence.
        part: the run that the pages are of.
        pages: those that are sent.
    """
    end = (pages[-1] + 1) * spec.page_tokens
    return 0 if chain_bytes(token_ids[:end], len(pages)) <= CHAIN_BYTES else part.start
