"""Groups of pages as frames: what goes in is checked, what comes out is the group asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import LexicoCodec, RawCodec
from lexico_codec.frame import parse_frame
from lexico_codec.geometry import DTYPES, Geometry, Rope
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec, Shard
from lexico_proto.errors import (
    DamagedFrame,
    DictionaryMismatch,
    FrameMismatch,
    InvalidInput,
    NonFiniteCache,
    ShapeMismatch,
    UnknownDictionary,
)
from tests.support.dictionaries import random_set
from tests.support.groups import bits, finite

DIM, HEADS, TOKENS = 24, 3, 7
DICTIONARY = random_set(5, DIM)
GEOMETRY = Geometry(5, HEADS, DIM, "float16", Rope((1.0, 0.5)))
RAW = CacheSpec(b"w" * 32, GEOMETRY, RawCodec(), page_tokens=TOKENS, group_layers=2)
LEXICO = replace(RAW, codec=LexicoCodec(sparsity=3), dictionary=DICTIONARY.digest)
SPECS = [pytest.param(RAW, id="raw"), pytest.param(LEXICO, id="lexico")]
KEYS = page_keys(RAW, list(range(4 * TOKENS)))


def group_of(spec: CacheSpec, group: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + group)
    values = torch.randn(spec.group_shape(group), generator=generator)
    return values.to(spec.geometry.torch_dtype)


def unwritten(spec: CacheSpec, group: int) -> Tensor:
    return torch.full(spec.group_shape(group), float("nan"), dtype=spec.geometry.torch_dtype)


def encode(spec: CacheSpec, page: int, group: int, tensor: Tensor) -> bytes:
    return encode_group(spec, KEYS[page], page, group, tensor, DICTIONARY)


def decode(
    spec: CacheSpec,
    page: int,
    group: int,
    frame: bytes | memoryview,
    dictionary: DictionarySet | None = DICTIONARY,
) -> Tensor:
    out = unwritten(spec, group)
    decode_group(spec, KEYS[page], page, group, frame, out, dictionary)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_group_of_every_page(spec: CacheSpec, dtype: str) -> None:
    spec = replace(spec, geometry=replace(GEOMETRY, dtype=dtype))
    for page in range(3):
        tensors = [group_of(spec, group, 10 * page) for group in range(spec.groups)]
        frames = [
            encode_group(spec, KEYS[page], page, group, tensor, DICTIONARY)
            for group, tensor in enumerate(tensors)
        ]
        for group, (tensor, frame) in enumerate(zip(tensors, frames, strict=True)):
            out = decode(spec, page, group, frame)
            assert finite(out)
            exact = max(0, 4 - page * TOKENS) if spec.codec.needs_dictionary else TOKENS
            assert torch.equal(bits(out[:, :, :exact]), bits(tensor[:, :, :exact]))


@pytest.mark.parametrize("spec", SPECS)
def test_header_says_what_the_frame_is(spec: CacheSpec) -> None:
    frame = encode(spec, 1, 2, group_of(spec, 2))
    header = parse_frame(frame)[0]
    assert (header.codec_id, header.dtype) == (spec.codec.codec_id, "float16")
    assert (header.first_layer, header.layers) == (4, 1)
    assert (header.first_token, header.tokens, header.sink_tokens) == (7, 7, 0)
    assert (header.kv_heads, header.head_dim) == (HEADS, DIM)
    assert header.page_key == KEYS[1]
    assert header.dictionary == (spec.dictionary or bytes(32))
    assert header.geometry == GEOMETRY.digest()


def test_shard_takes_its_own_layers_of_the_set() -> None:
    """A pipeline rank that holds layers 2..4 uses the dictionaries of layers 2..4."""
    geometry = replace(GEOMETRY, layers=2)
    shard = replace(LEXICO, geometry=geometry, shard=Shard(2, 5, 0, HEADS))
    tensor = group_of(shard, 0)
    body = parse_frame(encode(shard, 1, 0, tensor))[1]
    whole = parse_frame(encode(LEXICO, 1, 1, tensor))[1]  # group 1 of the whole: layers 2 and 3
    assert bytes(body) == bytes(whole)


# What goes in


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (dtype, bad)
        for dtype in DTYPES
        for bad in (float("nan"), float("inf"), float("-inf"))
        if dtype != "float8_e4m3fn" or bad != bad  # it has no infinity
    ],
)
@pytest.mark.parametrize("spec", SPECS)
def test_non_finite_in_any_place(spec: CacheSpec, dtype: str, bad: float) -> None:
    spec = replace(spec, geometry=replace(GEOMETRY, dtype=dtype))
    count = group_of(spec, 0).numel()
    for place in (0, 1, 5 * DIM, count // 2, count - 2, count - 1):
        tensor = group_of(spec, 0)
        tensor.view(-1)[place] = bad
        for page in (0, 1):
            with pytest.raises(NonFiniteCache, match=f"page {page} group 0"):
                encode(spec, page, 0, tensor)


def test_non_finite_in_each_place() -> None:
    changes: dict[str, Any] = {"page_tokens": 2, "group_layers": 1, "shard": None}
    spec = replace(RAW, geometry=Geometry(1, 2, 3), **changes)
    for place in range(24):
        tensor = torch.zeros(spec.group_shape(0), dtype=torch.float16)
        tensor.view(-1)[place] = float("inf")
        tensor.view(-1)[(place + 1) % 24] = float("-inf")
        with pytest.raises(NonFiniteCache):
            encode(spec, 0, 0, tensor)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, TOKENS, HEADS, DIM),
        (3, 2, TOKENS, HEADS, DIM),
        (2, 1, TOKENS, HEADS, DIM),
        (2, 2, TOKENS - 1, HEADS, DIM),
        (2, 2, TOKENS + 1, HEADS, DIM),
        (2, 2, HEADS, TOKENS, DIM),
        (2, 2, TOKENS, HEADS + 1, DIM),
        (2, 2, TOKENS, HEADS, DIM // 2),
        (2, 2, TOKENS, HEADS * DIM),
        (2, 2, TOKENS, HEADS, DIM, 1),
        (0, 2, TOKENS, HEADS, DIM),
        (),
    ],
    ids=str,
)
def test_wrong_shape(spec: CacheSpec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="needs"):
        encode(spec, 0, 0, torch.zeros(shape, dtype=torch.float16))
    frame = encode(spec, 0, 0, group_of(spec, 0))
    out = torch.zeros(shape, dtype=torch.float16)
    with pytest.raises(ShapeMismatch, match="needs"):
        decode_group(spec, KEYS[0], 0, 0, frame, out, DICTIONARY)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16, torch.float64])
def test_wrong_dtype(spec: CacheSpec, dtype: torch.dtype) -> None:
    with pytest.raises(ShapeMismatch, match="needs"):
        encode(spec, 0, 0, group_of(spec, 0).to(dtype))
    frame = encode(spec, 0, 0, group_of(spec, 0))
    out = unwritten(spec, 0).to(dtype)
    with pytest.raises(ShapeMismatch, match="needs"):
        decode_group(spec, KEYS[0], 0, 0, frame, out, DICTIONARY)


@pytest.mark.parametrize("spec", SPECS)
def test_tensor_that_is_not_contiguous(spec: CacheSpec) -> None:
    tensor = group_of(spec, 0)
    strided = tensor.transpose(2, 3).contiguous().transpose(2, 3)
    assert encode(spec, 0, 0, strided) == encode(spec, 0, 0, tensor)
    same = tensor[:, :, :1].expand_as(tensor)  # to read, elements may share memory
    assert encode(spec, 0, 0, same) == encode(spec, 0, 0, same.contiguous())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("page", "group"), [(0, -1), (0, 3), (-1, 0), (2**32, 0), (2**60, 0)])
def test_no_such_place(spec: CacheSpec, page: int, group: int) -> None:
    tensor = group_of(spec, 0)
    with pytest.raises(InvalidInput, match="no group"):
        encode_group(spec, KEYS[0], page, group, tensor, DICTIONARY)
    with pytest.raises(InvalidInput, match="no group"):
        decode_group(spec, KEYS[0], page, group, b"", tensor, DICTIONARY)


@pytest.mark.parametrize("spec", SPECS)
def test_last_page_of_the_longest_sequence(spec: CacheSpec) -> None:
    page, tensor = (1 << 32) // TOKENS - 1, group_of(spec, 0)
    frame = encode_group(spec, KEYS[0], page, 0, tensor, DICTIONARY)
    decode_group(spec, KEYS[0], page, 0, frame, unwritten(spec, 0), DICTIONARY)


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33])
def test_key_of_another_length(key: bytes) -> None:
    with pytest.raises(InvalidInput, match="page key"):
        encode_group(RAW, key, 0, 0, group_of(RAW, 0))
    with pytest.raises(InvalidInput, match="page key"):
        decode_group(RAW, key, 0, 0, b"", group_of(RAW, 0))


def test_encoding_needs_the_set_that_the_spec_names() -> None:
    """The header names the spec's set: codes over another would be wrong KV that looks sound."""
    tensor = group_of(LEXICO, 0)
    other = random_set(5, DIM, seed=100)
    with pytest.raises(DictionaryMismatch, match="spec names"):
        encode_group(LEXICO, KEYS[0], 0, 0, tensor, other)
    with pytest.raises(UnknownDictionary):
        encode_group(LEXICO, KEYS[0], 0, 0, tensor)


@pytest.mark.parametrize("dictionary", [random_set(4, DIM), random_set(5, DIM + 1)])
def test_set_of_another_geometry(dictionary: DictionarySet) -> None:
    spec = replace(LEXICO, dictionary=dictionary.digest)
    with pytest.raises(DictionaryMismatch, match="dictionary set of"):
        encode_group(spec, KEYS[0], 0, 2, group_of(spec, 2), dictionary)


# What comes out


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "order", [(1, 0, 2, 3, 4), (0, 1, 3, 2, 4), (2, 0, 1, 4, 3), (4, 3, 2, 1, 0)], ids=str
)
def test_out_of_any_strides(spec: CacheSpec, order: tuple[int, ...]) -> None:
    """Layouts that engines hold their caches in."""
    frame = encode(spec, 0, 0, group_of(spec, 0))
    plain = decode(spec, 0, 0, frame)
    shape = [spec.group_shape(0)[axis] for axis in order]
    out = torch.full(shape, float("nan"), dtype=torch.float16).permute(
        [order.index(axis) for axis in range(5)]
    )
    decode_group(spec, KEYS[0], 0, 0, frame, out, DICTIONARY)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("spec", SPECS)
def test_out_inside_a_larger_tensor(spec: CacheSpec) -> None:
    frame = encode(spec, 0, 0, group_of(spec, 0))
    plain = decode(spec, 0, 0, frame)
    room = torch.full([2 * n + 3 for n in spec.group_shape(0)], 7.0, dtype=torch.float16)
    inside = tuple(slice(1, 1 + 2 * n, 2) for n in spec.group_shape(0))
    decode_group(spec, KEYS[0], 0, 0, frame, room[inside], DICTIONARY)
    assert torch.equal(room[inside], plain)
    room[inside] = 7.0
    assert bool((room == 7.0).all()), "written outside of out"


@pytest.mark.parametrize("spec", SPECS)
def test_frame_of_elsewhere(spec: CacheSpec) -> None:
    frame = encode(spec, 1, 0, group_of(spec, 0))
    out = unwritten(spec, 0)
    swaps = [
        (spec, KEYS[1], 2, 0, "first_token"),  # another page of the sequence
        (spec, KEYS[1], 1, 1, "first_layer"),  # another group of the page
        (spec, KEYS[2], 1, 0, "page_key"),  # another prefix
        (spec, bytes(32), 1, 0, "page_key"),
        (replace(spec, geometry=replace(GEOMETRY, rope=None)), KEYS[1], 1, 0, "geometry"),
    ]
    for asked, key, page, group, word in swaps:
        with pytest.raises(FrameMismatch, match=word):
            decode_group(asked, key, page, group, frame, out, DICTIONARY)
    assert bool(out.isnan().all()), "a frame that was refused was written"


def test_frame_of_another_codec() -> None:
    frame = encode(RAW, 1, 0, group_of(RAW, 0))
    with pytest.raises(FrameMismatch, match="codec_id"):
        decode(LEXICO, 1, 0, frame)
    with pytest.raises(FrameMismatch, match="codec_id"):
        decode(RAW, 1, 0, encode(LEXICO, 1, 0, group_of(RAW, 0)))


def test_frame_of_another_dictionary() -> None:
    other = random_set(5, DIM, seed=100)
    frame = encode(LEXICO, 0, 0, group_of(LEXICO, 0))
    for dictionary in (None, other, random_set(5, DIM, atoms=95)):
        with pytest.raises(FrameMismatch, match="spec names"):
            decode(LEXICO, 0, 0, frame, dictionary)
    with pytest.raises(FrameMismatch, match="another dictionary"):
        decode(replace(LEXICO, dictionary=other.digest), 0, 0, frame, other)


@pytest.mark.parametrize("spec", SPECS)
def test_damaged_frame_leaves_out_alone(spec: CacheSpec) -> None:
    frame = bytes(encode(spec, 0, 0, group_of(spec, 0)))
    out = unwritten(spec, 0)
    for data in (b"", frame[:-1], frame + b"\0", frame[:200] + b"\xff" + frame[201:], b"\0" * 5000):
        with pytest.raises(DamagedFrame):
            decode_group(spec, KEYS[0], 0, 0, data, out, DICTIONARY)
    assert bool(out.isnan().all())
