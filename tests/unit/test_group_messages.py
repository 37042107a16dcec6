"""A layer group becomes data messages: the same bytes, wherever and however its tensors lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_client._group_messages import GroupSource, group_messages
from lexico_codec.checksum import Checksum
from lexico_codec.geometry import Geometry
from lexico_codec.memory import CacheMemory
from lexico_codec.put_messages import parse_put
from lexico_codec.spec import CacheSpec, make_spec
from lexico_codec.tensors import bytes_of
from lexico_proto import errors
from lexico_proto.limits import PIECE_BYTES


def spec_of(
    heads: int, dim: int, tokens: int, dtype: str = "bfloat16", layers: int = 2
) -> CacheSpec:
    return make_spec(
        weights=b"w" * 32,
        geometry=Geometry(layers=layers, kv_heads=heads, head_dim=dim, dtype=dtype),
        codec="raw",
        page_tokens=tokens,
        group_layers=layers,
    )


def group_of(spec: CacheSpec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(spec.group_shape(0), generator=generator).to(spec.geometry.torch_dtype)


def sent(spec: CacheSpec, source: GroupSource) -> list[bytes]:
    """Payloads of the messages, whose checksum has proved to be theirs."""
    checksum, expected = Checksum(), Checksum()
    payloads = []
    for message in group_messages(spec, 0, 0, source, checksum):
        part = parse_put(message)
        assert isinstance(part, memoryview)
        assert len(part) <= PIECE_BYTES
        payloads.append(bytes(part))
        expected.add(part)
    assert checksum.value() == expected.value()
    return payloads


def parts_of(group: Tensor) -> list[Tensor]:
    """Its keys and values as an engine has them: `[kv_heads, tokens, head_dim]`, seen otherwise."""
    return [part.transpose(0, 1).contiguous().transpose(0, 1) for layer in group for part in layer]


def apart(group: Tensor) -> CacheMemory:
    """The same as an engine's memory, a tensor for the keys of a layer and one for its values."""
    parts = parts_of(group)
    return CacheMemory.of(parts[::2], parts[1::2])


def paged(group: Tensor, block_tokens: int = 7) -> CacheMemory:
    """The same in blocks that lie in no order."""
    tokens = group.shape[2]
    blocks = -(-tokens // block_tokens)
    table = torch.arange(blocks).flip(0)
    pool = group.new_zeros(*group.shape[:2], blocks, block_tokens, *group.shape[3:])
    for slot in range(tokens):
        pool[:, :, table[slot // block_tokens], slot % block_tokens] = group[:, :, slot]
    return CacheMemory.over(pool, tokens, block_table=table)


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 5),
    dim=st.integers(1, 33),
    tokens=st.integers(1, 70),
    layers=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_any_shape(heads: int, dim: int, tokens: int, layers: int, dtype: str) -> None:
    spec = spec_of(heads, 2 * dim, tokens, dtype, layers)
    group = group_of(spec)
    expected = bytes(bytes_of(group))
    stacked = torch.stack(parts_of(group)).view(group.shape)
    for source in (group, apart(group), paged(group), group.flip(4).flip(4), stacked):
        assert b"".join(sent(spec, source)) == expected


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((8, 128, 256), [1 << 20] * 2),  # keys and values of a layer
        ((4, 64, 63), [4 * 4 * 64 * 63 * 2]),  # all in one
        ((8, 128, 192), [2 * 192 * 2048, 2 * 192 * 2048]),  # two of them, not two and a half
        ((8, 128, 600), [1 << 20, 88 * 2048] * 4),  # part of one
    ],
    ids=str,
)
def test_messages_end_with_whole_tensors_or_tokens(
    shape: tuple[int, int, int], sizes: list[int]
) -> None:
    spec = spec_of(*shape)
    group = group_of(spec)
    payloads = sent(spec, apart(group))
    assert [len(payload) for payload in payloads] == sizes
    assert b"".join(payloads) == bytes(bytes_of(group))


def test_a_token_that_fits_into_no_message() -> None:
    spec = spec_of(1024, 1024, 2, "float32", 1)  # 4 MiB a token
    group = group_of(spec)
    payloads = sent(spec, apart(group))
    assert {len(payload) for payload in payloads} == {PIECE_BYTES}
    assert b"".join(payloads) == bytes(bytes_of(group))


def test_tensors_that_need_gradients_or_come_from_inference() -> None:
    spec = spec_of(2, 8, 5)
    group = group_of(spec)
    expected = bytes(bytes_of(group))
    assert b"".join(sent(spec, group.clone().requires_grad_())) == expected
    with torch.inference_mode():
        made = apart(group.clone())
    assert b"".join(sent(spec, made)) == expected


SPEC = spec_of(2, 8, 5)
PARTS = parts_of(group_of(SPEC))


@pytest.mark.parametrize(
    ("source", "error", "why"),
    [
        ([], TypeError, r"no torch\.Tensor and no CacheMemory"),
        (PARTS, TypeError, r"no torch\.Tensor and no CacheMemory"),
        (None, TypeError, r"no torch\.Tensor and no CacheMemory"),
        (CacheMemory.of(PARTS[:1], PARTS[1:2]), errors.ShapeMismatch, r"\(1, 2, 5, 2, 8\).* needs"),
        (apart(group_of(SPEC)).leading(4), errors.ShapeMismatch, r"4, 2, 8\).* needs"),
        (CacheMemory.over(group_of(SPEC).half()), errors.ShapeMismatch, "float16"),
        (group_of(SPEC)[:1], errors.ShapeMismatch, "needs"),
        (group_of(SPEC).float(), errors.ShapeMismatch, "float32"),
    ],
)
def test_what_does_not_fit(source: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        sent(SPEC, source)


@pytest.mark.parametrize("at", [(0, 0, 0, 0, 0), (1, 1, 599, 7, 127), (1, 0, 300, 3, 5)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite(at: Sequence[int], value: float) -> None:
    spec = spec_of(8, 128, 600)
    group = group_of(spec)
    group[tuple(at)] = value
    with pytest.raises(errors.NonFiniteCache, match="page 0 group 0"):
        sent(spec, apart(group))
