"""Layer groups of pages as frames: the only place where a spec, a codec and a frame meet."""

from __future__ import annotations

import torch
from torch import Tensor

from lexico_codec.codecs import Place
from lexico_codec.codecs.abc import GroupCodes
from lexico_codec.dictionary import DictionarySet
from lexico_codec.frame import FrameHeader, expect_frame, frame_parts
from lexico_codec.spec import DIGEST_BYTES, CacheSpec
from lexico_codec.tensors import all_finite
from lexico_proto.errors import (
    DictionaryMismatch,
    FrameMismatch,
    InvalidInput,
    NonFiniteCache,
    ShapeMismatch,
    UnknownDictionary,
)


def encode_group(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    tensor: Tensor,
    dictionary: DictionarySet | None = None,
) -> bytes:
    """The frame of one layer group of one page: `encode_group_parts` in one run."""
    return b"".join(encode_group_parts(spec, page_key, page, group, tensor, dictionary))


def encode_group_parts(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    tensor: Tensor,
    dictionary: DictionarySet | None = None,
) -> tuple[bytes, memoryview]:
    """The frame of one layer group of one page, as two runs of bytes that lie one behind the other.

    With codec raw the second is a view of the tensor: it must not change while the frame is used.

    Args:
        spec: what the page belongs to.
        page_key: the page's key, 32 bytes.
        page: index of the page in its sequence.
        group: index of the layer group in the page.
        tensor: `spec.group_shape(group)`, of the geometry's dtype, contiguous; on the device to
            encode on.
        dictionary: the set that the spec names.

    Raises:
        ShapeMismatch: another shape, dtype or layout.
        NonFiniteCache: NaN or infinity in it.
        UnknownDictionary: the codec needs a dictionary set and there is none.
        DictionaryMismatch: a set other than the one that the spec names, or of another geometry.
    """
    _check_index(spec, page, group)
    _check_dictionary(spec, dictionary)
    if tensor.shape != spec.group_shape(group) or tensor.dtype != spec.geometry.torch_dtype:
        raise ShapeMismatch(
            f"page {page} group {group}: {tuple(tensor.shape)} of {tensor.dtype}, needs "
            f"{spec.group_shape(group)} of {spec.geometry.torch_dtype}"
        )
    if not tensor.is_contiguous():
        raise ShapeMismatch(f"page {page} group {group}: the tensor is not contiguous")
    if not all_finite(tensor):
        raise NonFiniteCache(
            f"page {page} group {group} holds NaN or infinity: it cannot be shared; recompute it"
        )
    header = _header(spec, page_key, page, group)
    body = spec.codec.encode(tensor, _place(spec, page, group), dictionary)
    return frame_parts(header, body)


def decode_group(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    frame: bytes | bytearray | memoryview,
    out: Tensor,
    dictionary: DictionarySet | None = None,
) -> None:
    """Fills `out` from a frame, once the frame has proved to be the one asked for.

    Args:
        spec, page_key, page, group, dictionary: as for `encode_group`.
        frame: bytes from the store or the wire, not trusted.
        out: `spec.group_shape(group)` of the geometry's dtype, of any strides.

    Raises:
        DamagedFrame: the bytes fail a check.
        FrameMismatch: a sound frame that belongs elsewhere.
        ShapeMismatch: `out` does not fit the spec.
    """
    _check_index(spec, page, group)
    if out.shape != spec.group_shape(group) or out.dtype != spec.geometry.torch_dtype:
        raise ShapeMismatch(
            f"out is {tuple(out.shape)} of {out.dtype}, needs {spec.group_shape(group)} of "
            f"{spec.geometry.torch_dtype}"
        )
    body = _proven_body(spec, page_key, page, group, frame, dictionary)
    spec.codec.decode(body, _place(spec, page, group), dictionary, out)


def read_group(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    frame: bytes | bytearray | memoryview,
    dictionary: DictionarySet | None = None,
    device: torch.device | str = "cpu",
) -> GroupCodes:
    """The codes of a frame, once it has proved to be the one asked for; nothing is reconstructed.

    Args:
        spec, page_key, page, group, frame, dictionary: as for `decode_group`.
        device: where the codes go.

    Raises:
        DamagedFrame: the bytes fail a check.
        FrameMismatch: a sound frame that belongs elsewhere.
        Unsupported: a codec without codes (raw): use `decode_group`.
    """
    _check_index(spec, page, group)
    body = _proven_body(spec, page_key, page, group, frame, dictionary)
    return spec.codec.read(
        body,
        _place(spec, page, group),
        dictionary,
        spec.group_shape(group),
        spec.geometry.torch_dtype,
        torch.device(device),
    )


def _proven_body(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    frame: bytes | bytearray | memoryview,
    dictionary: DictionarySet | None,
) -> memoryview:
    """The body of the frame that was asked for, its checksum verified, its dictionary at hand."""
    if spec.codec.needs_dictionary and (dictionary is None or dictionary.digest != spec.dictionary):
        raise FrameMismatch("the dictionary set at hand is not the one that the spec names")
    return expect_frame(frame, _header(spec, page_key, page, group))


def _check_index(spec: CacheSpec, page: int, group: int) -> None:
    if not 0 <= group < spec.groups or not 0 <= page < (1 << 32) // spec.page_tokens:
        raise InvalidInput(f"no group {group} of page {page}: a page has {spec.groups} groups")


def _check_dictionary(spec: CacheSpec, dictionary: DictionarySet | None) -> None:
    """The frame will name the spec's set: codes over any other would decode to wrong KV."""
    if not spec.codec.needs_dictionary:
        return
    if dictionary is None:
        raise UnknownDictionary(f"codec {spec.codec.name}: no dictionary set was given")
    if dictionary.digest != spec.dictionary:
        raise DictionaryMismatch("the dictionary set at hand is not the one that the spec names")


def _place(spec: CacheSpec, page: int, group: int) -> Place:
    layers = spec.group_range(group)
    return Place(
        first_layer=spec.shard.first_layer + layers.start,
        first_token=page * spec.page_tokens,
        rope=spec.geometry.rope,
        first_head=spec.shard.first_head,
    )


def _header(spec: CacheSpec, page_key: bytes, page: int, group: int) -> FrameHeader:
    if len(page_key) != DIGEST_BYTES:
        raise InvalidInput(f"a page key has {DIGEST_BYTES} bytes, not {len(page_key)}")
    geometry, layers, first = spec.geometry, spec.group_range(group), page * spec.page_tokens
    return FrameHeader(
        codec_id=spec.codec.codec_id,
        dtype=geometry.dtype,
        sink_tokens=spec.codec.sink_tokens(first, spec.page_tokens),
        first_layer=layers.start,
        layers=len(layers),
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        first_token=first,
        tokens=spec.page_tokens,
        page_key=page_key,
        dictionary=spec.dictionary or bytes(DIGEST_BYTES),
        geometry=geometry.digest(),
    )
