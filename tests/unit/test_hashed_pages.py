"""Pages of an engine's own hashes: apart from each other, from other schemes and from token ids."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_client.engines._hashed import MIN_HASH_BYTES, hashed_pages
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.spec import make_spec
from lexico_proto.errors import InvalidInput

SPEC: Final = make_spec(
    weights=bytes(32),
    geometry=Geometry(layers=2, kv_heads=1, head_dim=64, dtype="float32"),
    codec="lossless",
)
HASHES: Final = st.lists(st.binary(min_size=MIN_HASH_BYTES, max_size=64), max_size=6)
SCHEMES: Final = st.text(min_size=1, max_size=8)


def keys_of(scheme: str, hashes: list[bytes]) -> list[bytes]:
    ids, inputs = hashed_pages(scheme, hashes, SPEC.page_tokens)
    return page_keys(SPEC, ids, inputs)


@given(SCHEMES, HASHES, SCHEMES, HASHES)
def test_keys_are_equal_where_the_schemes_and_all_hashes_are(
    scheme: str, hashes: list[bytes], other: str, others: list[bytes]
) -> None:
    first, second = keys_of(scheme, hashes), keys_of(other, others)
    assert len(first) == len(hashes)
    assert first == keys_of(scheme, list(hashes))
    for page, (mine, its) in enumerate(zip(first, second, strict=False)):
        alike = scheme == other and hashes[: page + 1] == others[: page + 1]
        assert (mine == its) == alike


@given(SCHEMES, HASHES.filter(bool))
def test_no_prompt_of_token_ids_has_such_a_key(scheme: str, hashes: list[bytes]) -> None:
    ids = np.zeros(len(hashes) * SPEC.page_tokens, dtype=np.uint32)
    assert not set(keys_of(scheme, hashes)) & set(page_keys(SPEC, ids))


def test_a_short_hash_and_no_scheme_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cryptographic"):
        hashed_pages("sglang", [bytes(32), bytes(8)], 64)
    with pytest.raises(InvalidInput, match="scheme"):
        hashed_pages("", [bytes(32)], 64)
    ids, inputs = hashed_pages("sglang", [], 64)
    assert len(ids) == len(inputs) == 0
