"""What an upload announces, and a page out of its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from lexico_codec.checksum import Checksum
from lexico_codec.inputs import PageDigests
from lexico_codec.keys import TokenIds, page_keys
from lexico_codec.limits import MAX_CHAIN_PAGES, MAX_GROUP_BYTES
from lexico_codec.pieces import Piece
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    InvalidInput,
    PageKeyMismatch,
    StreamDamaged,
    StreamTooLong,
    StreamTruncated,
    TokenCountMismatch,
)
from lexico_proto.limits import DIGEST_BYTES, PIECE_BYTES

_SMALL_BYTES: Final = PIECE_BYTES // 16


def checked_keys(
    spec: CacheSpec,
    token_ids: TokenIds,
    pages: Sequence[int],
    keys: Sequence[bytes],
    *,
    first_page: int = 0,
    parent_key: bytes = b"",
    inputs: PageDigests = (),
) -> list[bytes]:
    """Whether what an upload announces fits together: as `PutHeader` of offload.proto has it.

    Args:
        spec: what the pages belong to.
        token_ids: from the first token of `first_page` to the end of the last page sent.
        pages: indices of the pages sent.
        keys: the key of each of those.
        first_page, parent_key: where the token ids begin, and the key of the page before.
        inputs: what reached the model beside token ids, from `first_page` on.

    Returns:
        The keys of the sequence from `first_page` to the last page sent.

    Raises:
        InvalidInput, TokenCountMismatch, PageKeyMismatch: naming what does not fit.
    """
    whole = spec.whole
    if not pages or len(pages) != len(keys):
        raise InvalidInput(f"{len(pages)} pages with {len(keys)} page keys")
    if len(token_ids) > MAX_CHAIN_PAGES * spec.page_tokens:
        raise InvalidInput(f"more than {MAX_CHAIN_PAGES} pages in one sequence")
    if max(map(whole.group_bytes, range(whole.groups))) > MAX_GROUP_BYTES:
        raise InvalidInput(
            f"a layer group over {MAX_GROUP_BYTES} bytes: use fewer page_tokens or group_layers"
        )
    if any(later <= earlier for earlier, later in pairwise(pages)):
        raise InvalidInput("page indices must ascend")
    _check_part(spec, first_page, parent_key, pages[0], pages[-1], len(token_ids))
    if len(inputs) > pages[-1] + 1 - first_page:
        raise InvalidInput(f"{len(inputs)} input digests; pages end at {pages[-1]}")
    known = page_keys(spec, token_ids, inputs, parent=parent_key)
    for page, key in zip(pages, keys, strict=True):
        if len(key) != DIGEST_BYTES or known[page - first_page] != key:
            raise PageKeyMismatch(
                f"the key of page {page} is not the one that its namespace, tokens and inputs give"
            )
    return known


def _check_part(
    spec: CacheSpec, first_page: int, parent_key: bytes, lowest: int, highest: int, tokens: int
) -> None:
    """Whether the token ids of an upload are those of the pages that it names.

    What the parent key stands for is not seen here. It can only be one of the caller's own tenant,
    whose word is taken for keys and values too.

    Args:
        spec: what the pages belong to.
        first_page, parent_key: where the token ids begin, and the key of the page before.
        lowest, highest: the first and the last page that is sent.
        tokens: how many token ids there are.

    Raises:
        InvalidInput: a page that no sequence has.
        TokenCountMismatch: too few token ids, or too many.
        PageKeyMismatch: no parent key where there must be one, or one where there can be none.
    """
    if highest >= (1 << 32) // spec.page_tokens:
        raise InvalidInput(f"page {highest} of {spec.page_tokens} tokens: positions have 32 bits")
    if len(parent_key) != (DIGEST_BYTES if first_page else 0):
        raise PageKeyMismatch(
            f"a parent key of {len(parent_key)} bytes before page {first_page}: page 0 has none, "
            f"every other has one of {DIGEST_BYTES}"
        )
    needed = (highest + 1 - first_page) * spec.page_tokens
    if lowest < first_page or tokens != needed:
        raise TokenCountMismatch(
            f"{tokens} token ids from page {first_page} on; pages {lowest} to {highest} of "
            f"{spec.page_tokens} tokens need {max(needed, 0)}"
        )


class PageAssembler:
    """Collects one page. The page counts once its end agrees in length and sum.

    Pieces are kept as they came. Small ones are copied together: an object for each of a million
    pieces of a byte would take many times the page's own memory.
    """

    def __init__(self, page: int, page_bytes: int) -> None:
        """
        Args:
            page: index of the page expected.
            page_bytes: its length.
        """
        self._page = page
        self._page_bytes = page_bytes
        self._filled = 0
        self._checksum = Checksum()
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._small: bytearray | None = None  # the last of `_pieces`, while small ones come

    def add(self, piece: bytes | memoryview) -> None:
        """Takes the next piece, which must not change from now on.

        Raises:
            InvalidInput: an empty piece, or one over `PIECE_BYTES`.
            StreamTooLong: more bytes than the page has.
        """
        if not 0 < len(piece) <= PIECE_BYTES:
            raise InvalidInput(f"a data message of {len(piece)} bytes: outside 1..{PIECE_BYTES}")
        end = self._filled + len(piece)
        if end > self._page_bytes:
            raise StreamTooLong(f"page {self._page} carries more than its {self._page_bytes} bytes")
        self._checksum.add(piece)
        self._keep(piece)
        self._filled = end

    def _keep(self, piece: bytes | memoryview) -> None:
        if len(piece) >= _SMALL_BYTES:
            self._pieces.append(piece)
            self._small = None
            return
        if self._small is None:
            self._small = bytearray()
            self._pieces.append(self._small)
        self._small += piece

    def end(self, page: int, checksum: int) -> list[Piece]:
        """The page's bytes in pieces, once it has proved to be whole.

        Args:
            page: index that the sender gives it.
            checksum: XXH3-64 that the sender computed.

        Raises:
            StreamTruncated: bytes are missing.
            InvalidInput: another page's end.
            StreamDamaged: the bytes are not those that the sender summed.
        """
        if self._filled < self._page_bytes:
            raise self.cut()
        if page != self._page:
            raise InvalidInput(f"the end of page {page} after the bytes of page {self._page}")
        if checksum != self._checksum.value():
            raise StreamDamaged(f"page {page} was altered on its way: send it again")
        return [np.frombuffer(piece, np.uint8) for piece in self._pieces]

    def cut(self) -> StreamTruncated:
        """The error of an upload that is over before the page is."""
        return StreamTruncated(
            f"page {self._page} ended after {self._filled} of {self._page_bytes} bytes, "
            "or without its end"
        )
