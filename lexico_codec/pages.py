"""Layer groups of pages as frames: the only place where a spec, a codec and a frame meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lexico_codec.codecs import CODECS
from lexico_codec.codecs.codec import Place
from lexico_codec.frame import (
    FrameHeader,
    expect_frame,
    frame_parts,
    parse_frame,
)
from lexico_codec.memory import CacheMemory, target_of
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import FLOAT8, WIDE, all_finite
from lexico_proto.errors import (
    DictionaryMismatch,
    FrameMismatch,
    InvalidInput,
    NewerFrame,
    NonFiniteCache,
    ShapeMismatch,
    UnknownDictionary,
)
from lexico_proto.limits import DIGEST_BYTES

if TYPE_CHECKING:
    from lexico_codec.codecs.sparse import GroupCodes


def encode_group(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    source: Tensor | CacheMemory,
    dictionary: DictionarySet | None = None,
) -> bytes:
    """The frame of one layer group of one page: `encode_group_parts` in one run."""
    return b"".join(encode_group_parts(spec, page_key, page, group, source, dictionary))


def encode_group_parts(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    source: Tensor | CacheMemory,
    dictionary: DictionarySet | None = None,
) -> tuple[bytes, memoryview]:
    """The frame of one layer group of one page, as two runs of bytes that lie one behind the other.

    With codec raw the second may be a view of the source, which must not change meanwhile.

    Args:
        spec: what the page belongs to.
        page_key: the page's key, 32 bytes.
        page: index of the page in its sequence.
        group: index of the layer group in the page.
        source: the group, of the geometry's dtype, on the device to encode on: a tensor of
            `spec.group_shape(group)` and any strides, or where all of its layers and heads lie.
        dictionary: the set that the spec names.

    Raises:
        ShapeMismatch: another shape or dtype.
        NonFiniteCache: NaN or infinity in it.
        UnknownDictionary: the codec needs a dictionary set and there is none.
        DictionaryMismatch: a set other than the one that the spec names, or of another geometry.
    """
    _check_index(spec, page, group)
    _check_dictionary(spec, dictionary)
    tensor = read_whole(spec, page, group, source)
    if not all_finite(tensor):
        raise NonFiniteCache(
            f"page {page} group {group} holds NaN or infinity: it cannot be shared; recompute it"
        )
    header = _header(spec, page_key, page, group)
    body = spec.codec.encode(tensor, _place(spec, page, group), dictionary)
    return frame_parts(header, body)


def read_whole(spec: CacheSpec, page: int, group: int, source: Tensor | CacheMemory) -> Tensor:
    """A layer group that is to be coded, `spec.group_shape(group)`: a view of memory that is one
    tensor without blocks, else gathered into one.

    Args:
        spec, page, group, source: as for `encode_group`.

    Raises:
        ShapeMismatch: another shape or dtype, or a part of the layers or heads alone.
    """
    check_whole(spec, page, group, source)
    return source if isinstance(source, Tensor) else source.read()


def check_whole(spec: CacheSpec, page: int, group: int, source: Tensor | CacheMemory) -> None:
    """Refuses what is not all of a layer group: arguments and errors as of `read_whole`."""
    shape, dtype = spec.group_shape(group), spec.geometry.torch_dtype
    if tuple(source.shape) != shape or source.dtype != dtype:
        raise ShapeMismatch(
            f"page {page} group {group}: {tuple(source.shape)} of {source.dtype}, needs {shape} of "
            f"{dtype}"
        )
    if isinstance(source, CacheMemory):
        source.check(shape, dtype)


def decode_group(
    spec: CacheSpec,
    page_key: bytes,
    page: int,
    group: int,
    frame: bytes | bytearray | memoryview,
    out: Tensor | CacheMemory,
    dictionary: DictionarySet | None = None,
) -> None:
    """Fills a caller's memory from a frame, once the frame has proved to be the one asked for.

    Args:
        spec, page_key, page, group, dictionary: as for `encode_group`.
        frame: bytes from the store or the wire, not trusted.
        out: of the geometry's dtype: a tensor of `spec.group_shape(group)` and any strides, or
            where the layers and heads lie that are wanted.

    Raises:
        DamagedFrame: the bytes fail a check.
        NewerFrame: a sound frame of a version or codec that this build does not know.
        FrameMismatch: a sound frame that belongs elsewhere.
        ShapeMismatch: `out` does not fit the spec.
        InvalidInput: elements of a tensor that share memory.
    """
    _check_index(spec, page, group)
    target = checked_target(spec, group, out)
    body = _proven_body(spec, page_key, page, group, frame, dictionary)
    place, shape = _place(spec, page, group), spec.group_shape(group)
    spec.codec.decode(body, place, dictionary, target, shape)


def checked_target(
    spec: CacheSpec, group: int, out: Tensor | CacheMemory, name: str = "out"
) -> CacheMemory:
    """The memory that `decode_group` is to fill.

    Args:
        spec, group, out: as for `decode_group`.
        name: what an error calls it.

    Raises:
        ShapeMismatch: it does not fit the spec.
        InvalidInput: elements of a tensor that share memory.
    """
    shape, dtype = spec.group_shape(group), spec.geometry.torch_dtype
    if isinstance(out, Tensor) and (out.shape != shape or out.dtype != dtype):
        raise ShapeMismatch(
            f"{name} is {tuple(out.shape)} of {out.dtype}, needs {shape} of {dtype}"
        )
    target = target_of(out)
    target.check(shape, dtype, name)
    return target


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
        NewerFrame: a sound frame of a version or codec that this build does not know.
        FrameMismatch: a sound frame that belongs elsewhere.
        Unsupported: a codec without codes (raw): use `decode_group`.
    """
    # Here and not above: it brings the kernels of sparse coding, which few codecs use.
    from lexico_codec.codecs.sparse import with_codes

    _check_index(spec, page, group)
    codec = with_codes(spec.codec)
    body = _proven_body(spec, page_key, page, group, frame, dictionary)
    dtype = spec.geometry.torch_dtype
    return codec.read(
        body,
        _place(spec, page, group),
        dictionary,
        spec.group_shape(group),
        WIDE if dtype in FLOAT8 else dtype,
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
    try:
        return expect_frame(frame, _header(spec, page_key, page, group))
    except FrameMismatch as error:
        codec_id = parse_frame(frame)[0].codec_id
        if codec_id in {codec.codec_id for codec in CODECS.values()}:
            raise
        raise NewerFrame(
            f"a frame of codec {codec_id}: this build does not know it; upgrade it to use this page"
        ) from error


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
