"""What reaches a model beside token ids, as a digest for each page.

Equal token ids mean equal keys and values only where nothing else reached the model. Pictures,
sound and soft prompts stand behind placeholders that are alike, so their digests go into page keys.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lexico_codec.tensors import bytes_of
from lexico_proto.errors import InvalidInput
from lexico_proto.limits import DIGEST_BYTES

PageDigests: TypeAlias = Sequence[bytes]
"""For each page, from the first: 32 bytes, or none where token ids alone reached the model in it.
Pages beyond the last have none."""

Content: TypeAlias = "torch.Tensor | npt.NDArray[np.generic] | bytes | str | int | float | None"
"""Something that reached the model: what it is made of, or a digest that the caller has already."""

Span: TypeAlias = "tuple[int, int, Content | Sequence[Content] | Mapping[str, Content]]"
"""First token, number of tokens, and what they stand for. Several contents, such as the pixels of
a picture and the grid that they were cut into, go into a sequence, or a mapping by name."""


class PageInputs(tuple[bytes, ...]):
    """The digests of a sequence's pages, which also know where their spans lie."""

    spans: tuple[tuple[int, int], ...] = ()
    """First token of each span, and the one behind its last."""
    page_tokens: int = 0
    """Tokens of the pages that they are for; 0 where it is not known."""

    @classmethod
    def of(
        cls, digests: Iterable[bytes], spans: Iterable[tuple[int, int]], page_tokens: int = 0
    ) -> Self:
        """Digests with the spans that they cover."""
        made = cls(digests)
        made.spans = tuple(spans)
        made.page_tokens = page_tokens
        return made

    def uncut(self, tokens: int) -> int:
        """The most leading tokens, up to `tokens`, that end inside no span.

        A model takes a picture whole: a prefix that ends within one cannot be gone on with.
        """
        for start, end in sorted(self.spans, reverse=True):
            if start < tokens < end:
                tokens = start
        return tokens


def input_digests(spans: Iterable[Span], page_tokens: int, tokens: int) -> PageInputs:
    """The digests of what reached the model beside token ids.

    A page's digest covers each span that has a token in it, whole: where it begins, how long it is
    and its content. A span without tokens, such as what cross-attention or a soft prompt in front
    adds, is in the page of its first token. What came before a page is bound by the chain of keys.

    Args:
        spans: what reached it, in any order.
        page_tokens: tokens a page, as in the spec.
        tokens: length of the sequence.

    Returns:
        One digest for each full page; empty bytes for a page without spans.

    Raises:
        InvalidInput: a span outside the sequence, or content that cannot be hashed.
    """
    if page_tokens < 1 or tokens < 0:
        raise InvalidInput(f"input digests: page_tokens={page_tokens}, tokens={tokens}")
    found: list[list[bytes]] = [[] for _ in range(tokens // page_tokens)]
    places: list[tuple[int, int]] = []
    for start, length, content in spans:
        if not 0 <= start <= start + length <= tokens:
            raise InvalidInput(
                f"input digests: a span of {length} tokens from {start} in a sequence of {tokens}"
            )
        places.append((start, start + length))
        record = struct.pack("<QQ", start, length) + content_digest(content)
        last = max(start, start + length - 1)
        for page in range(start // page_tokens, min(last // page_tokens + 1, len(found))):
            found[page].append(record)
    return PageInputs.of((_page_digest(records) for records in found), places, page_tokens)


def content_digest(content: Content | Sequence[Content] | Mapping[str, Content]) -> bytes:
    """BLAKE2b-256 of what reached a model, 32 bytes: of type, dtype, shape and bytes.

    Raises:
        InvalidInput: an object that is none of these.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-content")
    if isinstance(content, Mapping):
        _write(digest, b"mapping", str(len(content)).encode())
        if not all(isinstance(name, str) for name in content):
            raise InvalidInput("input digests: names of contents are text")
        for name in sorted(content):
            _write(digest, name.encode(), content_digest(content[name]))
    elif isinstance(content, torch.Tensor):
        _write(digest, f"{content.dtype} {list(content.shape)}".encode(), _bytes_of(content))
    elif isinstance(content, np.ndarray):
        return content_digest(_tensor_of(content))
    elif isinstance(content, bytes | str):
        kind, data = type(content).__name__, content
        if isinstance(data, str):
            data = data.encode(errors="surrogatepass")
        _write(digest, kind.encode(), data)
    elif content is None or isinstance(content, bool | int | float):
        _write(digest, type(content).__name__.encode(), repr(content).encode())
    elif isinstance(content, list | tuple):
        _write(digest, b"sequence", str(len(content)).encode())
        for each in content:
            _write(digest, b"", content_digest(each))
    else:
        raise InvalidInput(f"input digests: {type(content).__name__} cannot be hashed")
    return digest.digest()


def checked_inputs(inputs: PageDigests, pages: int, page_tokens: int = 0) -> tuple[bytes, ...]:
    """The digests of the leading `pages` pages, without empty ones at the end.

    Args:
        inputs: digests from the first page on.
        pages: how many pages there are.
        page_tokens: tokens of each, where digests that know theirs are to be for such.

    Raises:
        InvalidInput: an entry that is neither empty nor 32 bytes, or digests for other pages.
    """
    if isinstance(inputs, bytes | str):
        raise InvalidInput("inputs: a digest for each page is needed, not one")
    if inputs is None:
        raise InvalidInput("inputs=None: leave it out, or give (), for token ids alone")
    made_for = inputs.page_tokens if isinstance(inputs, PageInputs) else 0
    if made_for and page_tokens and made_for != page_tokens:
        raise InvalidInput(
            f"inputs: the digests are for pages of {made_for} tokens, and these have {page_tokens}"
        )
    try:
        checked = list(inputs[:pages])
    except (TypeError, KeyError) as error:
        raise InvalidInput(
            f"inputs: a list or tuple with a digest for each page is needed, and "
            f"{type(inputs).__name__} is none: make it a list first"
        ) from error
    for page, digest in enumerate(checked):
        if not isinstance(digest, bytes) or len(digest) not in (0, DIGEST_BYTES):
            raise InvalidInput(f"inputs: the digest of page {page} has {DIGEST_BYTES} bytes, or 0")
    while checked and not checked[-1]:
        checked.pop()
    return tuple(checked)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise InvalidInput(
            "input digests: of tensors only those that are plain memory can be hashed"
        )
    return bytes_of(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1))


def _tensor_of(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """An array as the tensor that hashes alike, whatever its byte order and strides."""
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidInput("input digests: a masked array cannot be hashed: give data and mask")
    try:
        little = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.array(little, order="C"))
    except TypeError as error:
        raise InvalidInput(f"input digests: an array of {array.dtype} cannot be hashed") from error


def _page_digest(records: list[bytes]) -> bytes:
    if not records:
        return b""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-inputs")
    for record in sorted(records):  # of one length each
        digest.update(record)
    return digest.digest()


def _write(digest: hashlib.blake2b, name: bytes, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    digest.update(struct.pack("<QQ", len(name), len(view)))
    digest.update(name)
    digest.update(view)
