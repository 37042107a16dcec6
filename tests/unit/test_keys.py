"""Page keys: equal exactly where the prefixes are."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import RawCodec
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys, token_array
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import TokenCountMismatch


def spec_of(page_tokens: int = 4, lora: str = "") -> CacheSpec:
    return CacheSpec(
        weights=bytes(range(32)),
        geometry=Geometry(2, 3, 16),
        codec=RawCodec(),
        page_tokens=page_tokens,
        lora=lora,
    )


def test_known_keys() -> None:
    """Any change here is a change of every key in every store."""
    spec = spec_of()
    keys = page_keys(spec, [0, 1, 2, 3, 4, 5, 6, 2**32 - 1, 8])
    assert (
        spec.namespace.hex() == "e2c694ee478bb806f393996e084fb621435519b3613ee9cdd764b9f9b10d9176"
    )
    assert [key.hex() for key in keys] == [
        "2424c947c6b98429947bb7ac0237b48866439f3a28c68624842451a4a3eda8c4",
        "f0e17b20caa3cf4a38cefffd97fd65ddded9fb44925fe3ab27cd405865e142fa",
    ]
    parent = spec.namespace
    for key, tokens in zip(keys, ((0, 1, 2, 3), (4, 5, 6, 2**32 - 1)), strict=True):
        data = parent + b"".join(token.to_bytes(4, "little") for token in tokens)
        parent = hashlib.blake2b(data, digest_size=32, person=b"lexico-page").digest()
        assert key == parent


TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30)


@given(tokens=TOKENS, page_tokens=st.integers(1, 7), data=st.data())
def test_a_token_changes_its_page_and_all_later_ones(
    tokens: list[int], page_tokens: int, data: st.DataObject
) -> None:
    spec = spec_of(page_tokens)
    keys = page_keys(spec, tokens)
    assert len(keys) == len(tokens) // page_tokens
    assert len(set(keys)) == len(keys)
    at = data.draw(st.integers(0, len(tokens) - 1))
    changed = list(tokens)
    changed[at] ^= 1 << data.draw(st.integers(0, 31))
    others = page_keys(spec, changed)
    same = [a == b for a, b in zip(keys, others, strict=True)]
    assert same == [page < at // page_tokens for page in range(len(keys))]


@given(tokens=TOKENS, page_tokens=st.integers(1, 7), end=st.integers(0, 30))
def test_keys_of_a_prefix_are_a_prefix_of_the_keys(
    tokens: list[int], page_tokens: int, end: int
) -> None:
    spec = spec_of(page_tokens)
    shorter = page_keys(spec, tokens[:end])
    assert shorter == page_keys(spec, tokens)[: len(shorter)]


@given(tokens=TOKENS)
def test_order_of_tokens_counts(tokens: list[int]) -> None:
    spec = spec_of(len(tokens))
    assert (page_keys(spec, tokens) == page_keys(spec, tokens[::-1])) == (tokens == tokens[::-1])


def test_another_namespace_shares_no_key() -> None:
    tokens = list(range(12))
    families = [spec_of(), spec_of(lora="a"), spec_of(page_tokens=2)]
    keys = [key for spec in families for key in page_keys(spec, tokens)]
    assert len(set(keys)) == len(keys)


def test_same_page_twice_has_two_keys() -> None:
    first, second = page_keys(spec_of(), [7, 7, 7, 7] * 2)
    assert first != second


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        lambda ids: np.array(ids, dtype=np.int32),
        lambda ids: np.array(ids, dtype=">i8"),
        lambda ids: np.repeat(np.array(ids, dtype=np.uint16), 2)[::2],
        torch.tensor,
    ],
    ids=["list", "tuple", "int64", "int32", "big-endian", "strided", "torch"],
)
def test_any_container_gives_the_same_keys(make: Any) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    assert page_keys(spec_of(), make(ids)) == page_keys(spec_of(), ids)
    assert token_array(make(ids)).dtype == np.dtype("<u4")
    assert token_array(make(ids)).tolist() == ids


@pytest.mark.parametrize("ids", [[], (), np.empty(0, dtype=np.int64), [1, 2, 3]])
def test_no_full_page_no_keys(ids: Any) -> None:
    assert page_keys(spec_of(), ids) == []


@pytest.mark.parametrize(
    "ids",
    [
        [-1],
        [1, 2, -5],
        [2**32],
        [2**63],
        [2**64],
        [2**200],
        [2**63, -1],
        np.array([-1], dtype=np.int8),
        [1.0],
        [float("nan")],
        [True, False],
        ["1"],
        [None],
        None,
        "1234",
        b"1234",
        5,
        [[1, 2], [3, 4]],
        [[1, 2], [3]],
        [1, [2]],
        np.ones((2, 2), dtype=np.int64),
        np.array(["a"]),
        torch.ones(3, requires_grad=True),
        torch.empty(3, dtype=torch.int64, device="meta"),
    ],
    ids=repr,
)
def test_bad_token_ids_have_a_name(ids: Any) -> None:
    with pytest.raises(TokenCountMismatch, match="token ids"):
        token_array(ids)
