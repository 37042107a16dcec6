"""Pages whose position is not known: it is found from their keys, and they are coded as the same
pages are at that position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_client import AsyncClient
from lexico_client._coding import Coding
from lexico_codec.canonical import canonical_json
from lexico_codec.codecs import CODECS, LosslessCodec, ResidualCodec, codec_from_config
from lexico_codec.codecs.codec import Place
from lexico_codec.codecs.residual.positions import POSITIONS, find_position
from lexico_codec.codecs.residual.sinks import sinks_among
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.memory import CacheMemory
from lexico_codec.presets import PRESETS, codec_named
from lexico_codec.rope import rotate
from lexico_codec.sets.choose import choose
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import ConfigurationError, DamagedFrame
from tests.support.dictionaries import told
from tests.support.residual_sets import residual_set
from tests.support.waiting import until
from tests.support.without_set import Service, client, metrics, said, service

__all__ = ["client", "metrics", "service"]  # fixtures

LAYERS, HEADS, DIM, TOKENS = 2, 3, 16, 24
ROPE = Rope(tuple(10000 ** (-i / 8) for i in range(8)))
GEOMETRY = Geometry(LAYERS, HEADS, DIM, "float16", ROPE)
BASE = CacheSpec(bytes(range(32)), GEOMETRY, LosslessCodec(), page_tokens=TOKENS)
FOUND = ResidualCodec(positions="found", sinks=0)
GIVEN = ResidualCodec(sinks=0)


def set_of(rope: Rope = ROPE) -> TransformSet:
    made = residual_set(LAYERS, HEADS, DIM, mean=2.0)
    named = told(made, rope=json.loads(canonical_json(asdict(rope))))
    assert isinstance(named, TransformSet)
    return named


SET = set_of()


def page_at(position: int, tokens: int = TOKENS, made: TransformSet = SET) -> Tensor:
    """`[layers, 2, tokens, heads, dim]` float16 as a cache has it, of the size that the set
    expects: keys are its means and noise, and then turned."""
    generator = torch.Generator().manual_seed(0)
    page = torch.randn(LAYERS, 2, tokens, HEADS, DIM, generator=generator)
    page[:, 0] = 4 * page[:, 0] + made.transform.means[::2, None]
    at = torch.arange(position, position + tokens)
    page[:, 0] = torch.stack([rotate(keys, at, ROPE) for keys in page[:, 0]])
    return page.half()


def decoded(body: bytes, codec: ResidualCodec, place: Place, like: Tensor) -> Tensor:
    out = torch.full_like(like, float("nan"))
    codec.decode(memoryview(body), place, SET, out)
    return out


# Where a page lies


ropes = st.builds(
    lambda pairs, base, pairing, scale: Rope(
        tuple(float(base) ** (-i / pairs) for i in range(pairs)), pairing, scale
    ),
    st.integers(6, 16),
    st.sampled_from([1e4, 5e5, 1e6]),
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([1.0, 1.2]),
)


@settings(max_examples=40)
@given(
    ropes,
    st.integers(0, POSITIONS - 65),
    st.integers(16, 64),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 1 << 20),
)
def test_a_page_is_found_where_it_lies(
    rope: Rope, position: int, tokens: int, dtype: torch.dtype, seed: int
) -> None:
    """Any pairing, part of a head, scale, type and strides: keys whose mean is as long as they
    differ, which is less than models show."""
    generator = torch.Generator().manual_seed(seed)
    layers, heads, dim = 8, 3, 32
    means = torch.randn(2 * layers, heads, dim, generator=generator)
    page = torch.randn(layers, 2, tokens, heads, dim, generator=generator) + means.view(
        layers, 2, 1, heads, dim
    )
    # Nearest to what float32 makes of the angle, as models do.
    at = torch.arange(position, position + tokens)
    page[:, 0] = torch.stack([rotate(keys, at, rope) for keys in page[:, 0]])
    memory = page.to(dtype).transpose(2, 3).contiguous().transpose(2, 3)
    found = find_position(CacheMemory.over(memory).tables, means.flatten(1), rope)
    assert found == position


def test_paged_memory_is_searched_alike() -> None:
    page = page_at(777)
    whole = CacheMemory.over(page)
    pool = torch.zeros(LAYERS, 2, 5, 8, HEADS, DIM, dtype=torch.float16)
    blocks = torch.tensor([3, 0, 4])
    pool[:, :, blocks] = page.view(LAYERS, 2, 3, 8, HEADS, DIM)
    paged = CacheMemory.over(pool, TOKENS, block_table=blocks)
    means = SET.transform.means.flatten(1)
    assert [find_position(each.tables, means, ROPE) for each in (whole, paged)] == [777, 777]


@pytest.mark.parametrize("keys", ["zero", "all alike", "one token", "largest", "random"])
def test_any_keys_have_a_position(keys: str) -> None:
    """What tells nothing is taken to lie somewhere; it costs bytes and no more."""
    page = page_at(5, tokens=1 if keys == "one token" else TOKENS)
    if keys == "zero":
        page[:, 0] = 0
    elif keys == "all alike":
        page[:, 0] = page[:, 0, :1]
    elif keys == "largest":
        page[:, 0] = torch.finfo(torch.float16).max
    elif keys == "random":
        page = torch.randn(page.shape, generator=torch.Generator().manual_seed(1)).half()
    means = SET.transform.means.flatten(1)
    found = find_position(CacheMemory.over(page).tables, means, ROPE)
    assert 0 <= found < POSITIONS


# How it is coded


@pytest.mark.parametrize("position", [0, 1, 640, 5000, 131_072 + 17, POSITIONS - TOKENS])
def test_a_page_is_coded_as_at_its_position(position: int) -> None:
    page = page_at(position)
    known = Place(0, position, ROPE)
    usual = bytes(GIVEN.encode(page, known, SET))
    for anywhere in (0, 64, 9999):  # what a place says counts for nothing
        body = bytes(FOUND.encode(page, Place(0, anywhere, ROPE), SET))
        assert int.from_bytes(body[:4], "little") == position
        assert body[4:] == usual
        out = decoded(body, FOUND, Place(0, anywhere, ROPE), page)
        assert torch.equal(out, decoded(usual, GIVEN, known, page))
    error = (out.float() - page.float()).norm() / page.float().norm()
    assert float(error) < 0.3


def test_layers_and_heads_are_taken_out_alike() -> None:
    page = page_at(900)
    place = Place(0, 0, ROPE)
    body = bytes(FOUND.encode(page, place, SET))
    whole = decoded(body, FOUND, place, page)
    part = torch.empty(1, 2, TOKENS, 1, DIM, dtype=page.dtype)
    memory = CacheMemory.over(part, first_layer=1, first_head=2)
    FOUND.decode(memoryview(body), place, SET, memory, tuple(page.shape))
    assert torch.equal(part, whole[1:, :, :, 2:])


def test_each_run_of_layers_finds_its_own() -> None:
    made = told(
        residual_set(LAYERS, HEADS, DIM, runs=2, mean=2.0),
        rope=json.loads(canonical_json(asdict(ROPE))),
    )
    codec, _ = choose(codec_named("near").without_positions(), made, GEOMETRY)
    assert codec == ResidualCodec("near", run_layers=1, positions="found", sinks=0)
    assert isinstance(made, TransformSet)
    page = page_at(70, made=made)
    for layer in range(LAYERS):
        part = page[layer : layer + 1]
        body = bytes(codec.encode(part, Place(layer, 0, ROPE), made))
        out = torch.empty_like(part)
        codec.decode(memoryview(body), Place(layer, 0, ROPE), made, out)
        assert int.from_bytes(body[:4], "little") == 70
        assert float((out.float() - part.float()).norm() / part.float().norm()) < 0.3


def test_a_model_without_rope_has_nothing_to_find() -> None:
    made, page = residual_set(LAYERS, HEADS, DIM), page_at(0)
    place = Place(0, 0, None)
    body = bytes(FOUND.encode(page, place, made))
    assert body[:4] == bytes(4)
    assert body[4:] == bytes(GIVEN.encode(page, place, made))


@pytest.mark.parametrize("body", [b"", b"\0\0\0", (POSITIONS).to_bytes(4, "little") + bytes(99)])
def test_damaged_positions_are_refused(body: bytes) -> None:
    with pytest.raises(DamagedFrame, match="position"):
        decoded(body, FOUND, Place(0, 0, ROPE), page_at(0))


@settings(max_examples=60)
@given(st.integers(0, POSITIONS - 1))
def test_any_position_that_a_body_tells_is_decoded(position: int) -> None:
    """A body that another writer made, of any position, gives finite keys and the same values."""
    page = page_at(40)
    body = bytearray(FOUND.encode(page, Place(0, 0, ROPE), SET))
    before = decoded(bytes(body), FOUND, Place(0, 0, ROPE), page)
    body[:4] = position.to_bytes(4, "little")
    after = decoded(bytes(body), FOUND, Place(0, 0, ROPE), page)
    assert torch.equal(after[:, 1], before[:, 1])
    assert bool(after.isfinite().all())


def test_attention_sinks_stay_exact_wherever_they_lie() -> None:
    """No page tells that it has the first token: it is known by its values."""
    page = page_at(300)
    page[:, 1, 5] *= 0.1
    place = Place(0, 0, ROPE)
    out = decoded(bytes(FOUND.encode(page, place, SET)), FOUND, place, page)
    same = (out == page).flatten(3).all(3).all(0).all(0)
    assert same.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
def test_ordinary_tokens_are_no_sinks(tokens: int) -> None:
    """Whatever their length is, if others have it too; and where nothing is to be compared."""
    values = torch.randn(4, tokens, HEADS, DIM, generator=torch.Generator().manual_seed(tokens))
    for scale in (0.0, 1e-3, 1.0, 1e3):
        assert not bool(sinks_among(values * scale).any())
    if tokens > 4:
        values[1:, 3] *= 0.1  # in most layers is enough
        assert sinks_among(values).nonzero().flatten().tolist() == [3]
        values[0] = 0
        assert sinks_among(values).nonzero().flatten().tolist() == [3]


# Which codecs do without positions


def test_parameters_that_came_later_are_not_in_the_usual_names() -> None:
    usual = ResidualCodec()
    assert usual.config_json() == '{"quality":"balanced","run_layers":0,"step":null}'
    for codec in (GIVEN, FOUND):
        assert codec_from_config("lexico-residual", codec.config_json()) == codec
    assert codec_from_config("lexico-residual", '{"positions":"given","sinks":4}') == usual
    assert [codec.sink_tokens(0, TOKENS) for codec in (usual, GIVEN, FOUND)] == [4, 0, 0]
    for wrong in (-1, 2, 5, True, 4.0, None):
        with pytest.raises(ConfigurationError, match="sinks"):
            ResidualCodec(sinks=wrong)  # type: ignore[arg-type]
    for word in ("", "known", None, 1):
        with pytest.raises(ConfigurationError, match="positions"):
            ResidualCodec(positions=word, sinks=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="goes with sinks=0"):
        ResidualCodec(positions="found")


def every_codec() -> Iterator[str]:
    yield from CODECS
    yield from PRESETS


@pytest.mark.parametrize("name", sorted(set(every_codec())))
def test_codecs_find_it_or_need_none_or_are_refused(name: str) -> None:
    codec = codec_named(name)
    if not codec.needs_dictionary:
        assert codec.without_positions() is codec
    elif isinstance(codec, ResidualCodec):
        assert codec.without_positions() == replace(codec, positions="found", sinks=0)
        assert codec.without_positions().without_positions() == codec.without_positions()
    else:
        with pytest.raises(ConfigurationError) as error:
            codec.without_positions()
        assert f"codec {codec.name}: needs the position of each page" in error.value.message


def taken(coding: Coding) -> bool:
    return coding.spec(BASE) != BASE


@pytest.mark.parametrize("asked", ["near", "balanced", "small"])
async def test_engines_that_tell_no_positions_take_the_set_of_the_model(
    asked: str, client: AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the one that others of the model have, published once."""
    unknowing = await client.coding(BASE, asked, known_positions=False, model="mine")
    knowing = await client.coding(BASE, asked, model="mine")
    lines = said(caplog)
    assert lines[0] == lines[1]
    assert lines[0].endswith(
        "--model mine --text TEXT --out SET.safetensors --codec lexico-residual --register"
    )
    assert await client.publish_dictionary(SET, BASE) == ("lexico-residual",)
    for coding, codec in (
        (unknowing, ResidualCodec(asked, positions="found", sinks=0)),
        (knowing, ResidualCodec(asked)),
    ):
        await until(partial(taken, coding), "the set is taken over")
        spec = coding.spec(BASE)
        assert (spec.dictionary, spec.codec) == (SET.digest, codec)
    assert unknowing.spec(BASE).namespace != knowing.spec(BASE).namespace


@pytest.mark.parametrize("asked", ["paper", "lexico", "lexico-packed", "lexico-adaptive"])
async def test_a_codec_that_needs_positions_is_refused_at_once(
    asked: str, client: AsyncClient
) -> None:
    with pytest.raises(ConfigurationError, match="needs the position of each page"):
        await client.coding(BASE, asked, known_positions=False)


def test_a_set_of_another_rotary_embedding_does_not_serve() -> None:
    other: DictionarySet = set_of(Rope(tuple(500_000 ** (-i / 8) for i in range(8))))
    with pytest.raises(Exception, match="another rotary embedding"):
        choose(FOUND, other, GEOMETRY)
