"""What reaches a model beside token ids is part of the page keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexico_client import Client, InMemoryTransport, input_digests
from lexico_codec.codecs import RawCodec
from lexico_codec.geometry import Geometry
from lexico_codec.inputs import checked_inputs, content_digest
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput, PageKeyMismatch
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.client_transport_contract import put_header, put_messages

SPEC = CacheSpec(bytes(32), Geometry(2, 2, 16), RawCodec(), page_tokens=4)
DIGESTS = st.lists(st.sampled_from([b"", b"a" * 32, b"b" * 32]), max_size=6)
SIMPLE = st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=3)
CONTENTS = st.recursive(
    SIMPLE | st.binary(max_size=3),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text("ab", max_size=2), each, max_size=2)
    ),
    max_leaves=4,
)


@given(tokens=st.lists(st.integers(0, 1), min_size=24, max_size=24), one=DIGESTS, other=DIGESTS)
def test_keys_are_equal_where_tokens_and_inputs_are(
    tokens: list[int], one: list[bytes], other: list[bytes]
) -> None:
    ours, theirs = page_keys(SPEC, tokens, one), page_keys(SPEC, tokens, other)
    for page in range(6):
        same = checked_inputs(one, page + 1) == checked_inputs(other, page + 1)
        assert (ours[page] == theirs[page]) == same
    assert page_keys(SPEC, tokens, [b""] * 6) == page_keys(SPEC, tokens)
    assert page_keys(SPEC, tokens[:9], one) == ours[:2]


@given(one=CONTENTS, other=CONTENTS)
def test_two_contents_have_two_digests(one: Any, other: Any) -> None:
    alike = repr(_plain(one)) == repr(_plain(other))
    assert (content_digest(one) == content_digest(other)) == alike


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def test_tensors_count_by_type_shape_and_bytes() -> None:
    picture = torch.arange(12.0).reshape(3, 4)
    others = [picture.reshape(4, 3), picture.double(), picture + 1, picture.to(torch.bfloat16)]
    assert len({content_digest(each) for each in [picture, *others]}) == 5
    strided = torch.stack([picture, picture]).transpose(0, 2)[..., 0].T
    assert content_digest(strided) == content_digest(picture)
    assert content_digest(picture.numpy()) == content_digest(picture)
    assert content_digest(picture.numpy().astype(">f4")) == content_digest(picture)
    frozen = picture.numpy().copy()
    frozen.flags.writeable = False
    assert content_digest(frozen) == content_digest(picture)


def test_tensors_that_only_look_negated_or_conjugated_count_by_what_they_are() -> None:
    real = torch.arange(3.0)
    complex_ = torch.complex(real, real + 1)
    for lazy, made in ((torch._neg_view(real), -real), (complex_.conj(), complex_.conj_physical())):
        assert content_digest(lazy) == content_digest(made)
    assert content_digest(complex_.conj()) != content_digest(complex_)


@pytest.mark.parametrize(
    "content",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        np.ma.array([1, 2], mask=[False, True]),
    ],
    ids=["sparse", "meta", "masked"],
)
def test_contents_that_are_refused(content: Any) -> None:
    with pytest.raises(InvalidInput, match="hashed"):
        content_digest(content)


def test_digests_for_pages_of_another_length_are_refused(client: Client) -> None:
    """A picture's digest would lie in a page that the picture is not in."""
    spec = small_spec()
    inputs = input_digests([(0, 1, "picture")], 2 * spec.page_tokens, len(TOKENS))
    with pytest.raises(InvalidInput, match="these have"):
        client.match(spec, TOKENS, inputs=inputs)
    with pytest.raises(InvalidInput, match="these have"):
        client.load(spec, TOKENS, Landing(spec), inputs=inputs)
    with pytest.raises(InvalidInput, match="these have"):
        client.offload(spec, TOKENS, views_of(spec, random_cache(spec, 1)), inputs=inputs)


def test_a_page_has_the_digest_of_the_spans_in_it() -> None:
    picture, sound = torch.ones(3), np.zeros(2)
    made = input_digests([(3, 2, picture), (9, 3, sound)], 4, 17)
    assert [bool(digest) for digest in made] == [True, True, True, False]
    assert made[0] == made[1] != made[2]
    assert input_digests([(9, 3, sound), (3, 2, picture)], 4, 17) == made, "in any order"
    assert input_digests([(3, 3, picture)], 4, 17)[0] != made[0], "its length counts"
    assert input_digests([(2, 2, picture)], 4, 17)[0] != made[0], "its place counts"
    assert input_digests([(0, 0, picture)], 4, 8)[0], "what stands before all tokens"
    assert input_digests([(16, 1, picture)], 4, 17) == (b"",) * 4, "in no full page"
    assert input_digests([], 4, 17) == (b"",) * 4
    twice = input_digests([(3, 2, picture), (3, 2, picture)], 4, 8)
    assert twice[0] != input_digests([(3, 2, picture)], 4, 8)[0]


def test_no_prefix_ends_within_a_span() -> None:
    made = input_digests([(3, 4, "a"), (6, 4, "b"), (12, 2, "c")], 4, 20)
    cut = {tokens: made.uncut(tokens) for tokens in range(21)}
    assert [cut[tokens] for tokens in (0, 3, 4, 6, 7, 9, 10, 12, 13, 14, 20)] == [
        0, 3, 3, 3, 3, 3, 10, 12, 12, 14, 20,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "spans",
    [[(-1, 2, "a")], [(0, 9, "a")], [(9, 0, "a")], [(0, -1, "a")], [(0, 1, object())],
     [(0, 1, {5: "a"})], [(0, 1, np.array([None]))]],
    ids=["before", "too-long", "behind", "backwards", "object", "numbered", "array-of-objects"],
)  # fmt: skip
def test_spans_that_cannot_be(spans: Any) -> None:
    with pytest.raises(InvalidInput, match="input digests"):
        input_digests(spans, 4, 8)


@pytest.mark.parametrize(
    "inputs",
    [[b"short"], ["a" * 32], [None], b"x" * 32, "ab", None, 7, {b"x" * 32}, {0: b"x" * 32}],
    ids=repr,
)
def test_what_is_no_digest(inputs: Any) -> None:
    with pytest.raises(InvalidInput, match="inputs"):
        page_keys(SPEC, list(range(8)), inputs)


def test_a_generator_of_digests_is_told_to_be_a_list() -> None:
    with pytest.raises(InvalidInput, match="make it a list"):
        page_keys(SPEC, list(range(8)), (b"" for _ in range(2)))  # type: ignore[arg-type]


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


def test_pages_are_found_by_their_inputs(client: Client) -> None:
    spec, cache = small_spec(), random_cache(small_spec(), 4)
    red, blue = (input_digests([(PAGE_TOKENS, 3, c)], PAGE_TOKENS, len(TOKENS)) for c in "rb")
    report = client.offload(spec, TOKENS, views_of(spec, cache), inputs=red)
    assert set(report.pages) == {"stored"}
    found = {"red": red, "blue": blue, "none": ()}
    pages = {name: client.match(spec, TOKENS, inputs=each).pages for name, each in found.items()}
    assert pages == {"red": 4, "blue": 1, "none": 1}
    landing = Landing(spec)
    assert client.load(spec, TOKENS, landing, inputs=red).pages == 4
    assert torch.equal(landing.cache, cache)
    assert client.load(spec, TOKENS, Landing(spec), inputs=blue).pages == 1
    explained = client.explain(spec, TOKENS, inputs=blue)
    assert (explained.page_inputs, explained.first_absent) == ((1,), 1)


async def test_a_header_of_other_inputs_is_refused() -> None:
    header = put_header(TOKENS[: 2 * PAGE_TOKENS], [0, 1])
    assert not header.page_inputs
    data = bytes(2 * small_spec().page_bytes)
    for inputs, error in (
        ([b"", b"x" * 32], PageKeyMismatch),
        ([b"x"], InvalidInput),
        ([b""] * 3, InvalidInput),
    ):
        del header.page_inputs[:]
        header.page_inputs.extend(inputs)
        with pytest.raises(error):
            await InMemoryTransport().put(put_messages(header, data), 10)
