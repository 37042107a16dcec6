"""Objects as bytes for LMCache's own adapters: back bit for bit, or refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client.engines.lmcache._coded import MAGIC, ObjectCoding
from lexico_client.engines.lmcache._config import SerdeConfig
from lexico_client.engines.lmcache._objects import whole_tensor
from lexico_codec.pages import encode_group
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    FrameMismatch,
    LexicoError,
    NewerFrame,
    NonFiniteCache,
    Unsupported,
)
from tests.support.lmcache_fakes import (
    BLOCK_TOKENS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    OBJECTS,
    Key,
    Memory,
    key_of,
    keys_first,
    page_of,
)
from tests.support.residual_sets import residual_set
from tests.support.saved_model import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def coding(folder: Path) -> ObjectCoding:
    return coded_with()


@pytest.fixture
def key(folder: Path) -> Key:
    return key_of(str(folder))


def coded_with(**settings: Any) -> ObjectCoding:
    return ObjectCoding(SerdeConfig.of({"padded_to": 0, **settings}))


def encoded(coding: ObjectCoding, key: Key, tensor: Tensor) -> bytearray:
    """As LMCache has it coded: into a buffer of the estimate, of which a part is used."""
    buffer = Memory.of(coding.most_bytes(tensor.shape, tensor.dtype))
    size = coding.encode(key, tensor, buffer.byte_array)
    return bytearray(buffer.byte_array[:size])


def decoded(coding: ObjectCoding, key: Key, data: bytes | bytearray, like: Tensor) -> Tensor:
    into = torch.full_like(like, float("nan"))
    coding.decode(key, memoryview(data), into)
    return into


@pytest.mark.parametrize("tokens", [8, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_layout_comes_back_bit_for_bit(
    kind: str, dtype: torch.dtype, tokens: int, key: Key
) -> None:
    layout, made = OBJECTS[kind]
    coding = coded_with(layout=layout, block_tokens=BLOCK_TOKENS)
    tensor = made(page_of(tokens, tokens=tokens, dtype=dtype))
    data = encoded(coding, key, tensor)
    assert len(data) <= coding.most_bytes(tensor.shape, dtype)
    assert torch.equal(decoded(coding, key, data, tensor), tensor)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("kind", OBJECTS)
def test_bytes_of_a_cache_in_eight_bits_come_back(kind: str, dtype: torch.dtype, key: Key) -> None:
    layout, made = OBJECTS[kind]
    name = str(dtype).removeprefix("torch.")
    coding = coded_with(layout=layout, block_tokens=BLOCK_TOKENS, cache_dtype=name)
    tensor = made(page_of(64, tokens=64, dtype=torch.float32).to(dtype)).view(torch.uint8)
    data = encoded(coding, key, tensor)
    assert len(data) < 0.9 * tensor.nbytes + 100
    into = torch.zeros_like(tensor)
    coding.decode(key, memoryview(data), into)
    assert torch.equal(into, tensor)
    with pytest.raises(Unsupported, match="`cache_dtype`"):
        encoded(coded_with(layout=layout, block_tokens=BLOCK_TOKENS), key, tensor)


def test_noise_that_nothing_shrinks_fits_the_estimate(coding: ObjectCoding, key: Key) -> None:
    bits = torch.randint(0, 1 << 15, (2, LAYERS, 24, HEADS * HEAD_DIM), dtype=torch.int16)
    noise = bits.view(torch.float16).nan_to_num(0.5, 0.5, 0.5)
    assert torch.equal(decoded(coding, key, encoded(coding, key, noise), noise), noise)


def test_bytes_are_those_of_the_frames_and_a_head(coding: ObjectCoding, key: Key) -> None:
    page = page_of(tokens=64)
    tensor = keys_first(page)
    made = coding._pages.page(key, tensor.shape, tensor.dtype)
    assert made.spec.groups == 1
    frame = encode_group(made.spec, bytes(32), 0, 0, page)
    assert len(encoded(coding, key, tensor)) == 32 + len(frame)


def test_adapters_may_read_into_longer_buffers(coding: ObjectCoding, key: Key) -> None:
    tensor = keys_first(page_of())
    data = encoded(coding, key, tensor)
    assert torch.equal(decoded(coding, key, data + b"\xa5" * 999, tensor), tensor)


def test_objects_are_padded_to_a_part_of_their_size(key: Key) -> None:
    tensor = keys_first(page_of(tokens=256, dtype=torch.bfloat16))
    coding = coded_with(padded_to=0.9)
    data = encoded(coding, key, tensor)
    assert len(data) == coding.most_bytes(tensor.shape, tensor.dtype) == int(0.9 * tensor.nbytes)
    assert torch.equal(decoded(coding, key, data, tensor), tensor)
    usual = ObjectCoding(SerdeConfig.of({}))
    assert len(encoded(usual, key, tensor)) == tensor.nbytes
    with pytest.raises(Unsupported, match="give a larger `padded_to`"):
        encoded(coded_with(padded_to=0.1), key, tensor)


def test_a_buffer_that_is_too_short_is_refused(coding: ObjectCoding, key: Key) -> None:
    tensor = keys_first(page_of())
    with pytest.raises(Unsupported, match="has room for"):
        coding.encode(key, tensor, Memory.of(100).byte_array)


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 24, 40, -1])
def test_bytes_that_end_early_are_refused(cut: int, coding: ObjectCoding, key: Key) -> None:
    tensor = keys_first(page_of())
    with pytest.raises(DamagedFrame):
        decoded(coding, key, encoded(coding, key, tensor)[:cut], tensor)


def test_every_bit_that_is_turned_is_noticed(coding: ObjectCoding, key: Key) -> None:
    tensor = keys_first(page_of())
    data = encoded(coding, key, tensor)
    for place in {*range(0, 260), *range(260, len(data), 97)}:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((DamagedFrame, NewerFrame)):
            decoded(coding, key, damaged, tensor)


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"\0" * 64, DamagedFrame),
        (struct.pack("<4sHHQ", MAGIC, 2, 1, 64) + bytes(64), NewerFrame),
        (struct.pack("<4sHHQ", MAGIC, 1, 0, 64) + bytes(64), DamagedFrame),
        (struct.pack("<4sHHQ", MAGIC, 1, 65535, 64) + bytes(64), DamagedFrame),
    ],
)
def test_bytes_of_others_are_refused(
    head: bytes, error: type[Exception], coding: ObjectCoding, key: Key
) -> None:
    with pytest.raises(error):
        decoded(coding, key, head, keys_first(page_of()))


def test_bytes_of_another_object_are_refused(coding: ObjectCoding, key: Key, folder: Path) -> None:
    tensor = keys_first(page_of())
    data = encoded(coding, key, tensor)
    others = [
        key_of(str(folder), 1),
        key_of(str(folder), cache_salt="x"),
        key_of(str(folder), kv_rank=2 << 24),
    ]
    for other in others:
        with pytest.raises(FrameMismatch):
            decoded(coding, other, data, tensor)
    with pytest.raises(LexicoError):
        decoded(coding, key, data, keys_first(page_of(tokens=48)))
    with pytest.raises(FrameMismatch):
        decoded(coding, key, data, tensor.bfloat16())
    with pytest.raises(FrameMismatch):
        decoded(coded_with(salt="another"), key, data, tensor)
    with pytest.raises(FrameMismatch):
        decoded(coded_with(codec="raw"), key, data, tensor)


def test_a_lossy_codec_finds_positions(key: Key, tmp_path: Path) -> None:
    free = residual_set(LAYERS, HEADS, HEAD_DIM)
    file = tmp_path / "free.safetensors"
    free.save(file)
    coding = coded_with(codec="near", dictionary=str(file))
    tensor = keys_first(page_of(tokens=64))
    data = encoded(coding, key, tensor)
    assert len(data) < 0.6 * len(encoded(coded_with(), key, tensor))
    assert 0 < (decoded(coding, key, data, tensor) - tensor).norm() < tensor.norm()
    part = key_of(key.model_name, kv_rank=2 << 24)
    with pytest.raises(Unsupported, match="give codec lossless"):
        encoded(coding, part, keys_first(page_of(heads=1)))


def test_a_codec_without_a_set_is_named(key: Key) -> None:
    with pytest.raises(ConfigurationError, match="preset near needs a set"):
        encoded(coded_with(codec="near"), key, keys_first(page_of()))
    with pytest.raises(ConfigurationError, match="is no file; the serde asks no service"):
        coded_with(codec="near", dictionary="ab" * 32)


def test_numbers_that_are_none_are_not_stored(coding: ObjectCoding, key: Key) -> None:
    tensor = keys_first(page_of())
    tensor[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteCache):
        encoded(coding, key, tensor)


def test_an_object_of_several_tensors_is_none() -> None:
    tensor = keys_first(page_of())
    assert whole_tensor(Memory(tensor)) is tensor
    with pytest.raises(Unsupported, match="an object of 2 tensors"):
        whole_tensor(Memory(tensor, more=1))
    gone = Memory(tensor)
    gone.tensor = None
    with pytest.raises(Unsupported):
        whole_tensor(gone)
