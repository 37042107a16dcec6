"""Specs: what the namespace binds, how layers are cut into groups, what is refused."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import LexicoCodec, RawCodec, codec_from_config
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.keys import page_keys
from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_codec.spec import FRAME_TARGET_BYTES, CacheSpec, Shard, make_spec
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto.errors import (
    ConfigurationError,
    InvalidInput,
    ShapeMismatch,
    TokenCountMismatch,
    UnknownCodec,
    Unsupported,
)
from lexico_proto.limits import MAX_GROUPS

GEOMETRY = Geometry(4, 2, 64, "float16", Rope((1.0, 0.5)))
BASE = CacheSpec(
    weights=b"w" * 32,
    geometry=GEOMETRY,
    codec=LexicoCodec(),
    dictionary=b"d" * 32,
    page_tokens=256,
    group_layers=2,
)
OTHERS = [
    replace(BASE, weights=b"x" * 32),
    replace(BASE, lora="adapter"),
    replace(BASE, lora="adapter "),
    replace(BASE, geometry=replace(GEOMETRY, dtype="bfloat16")),
    replace(BASE, geometry=replace(GEOMETRY, rope=None)),
    replace(BASE, geometry=replace(GEOMETRY, rope=Rope((1.0, 0.25)))),
    replace(BASE, geometry=replace(GEOMETRY, head_dim=80)),
    replace(BASE, geometry=replace(GEOMETRY, layers=3), shard=None),  # type: ignore[arg-type]
    replace(BASE, geometry=replace(GEOMETRY, kv_heads=1), shard=None),  # type: ignore[arg-type]
    replace(BASE, shard=Shard(0, 8, 0, 2)),
    replace(BASE, shard=Shard(0, 4, 0, 4)),
    replace(BASE, codec=RawCodec(), dictionary=b""),
    replace(BASE, codec=LexicoCodec(sparsity=9)),
    replace(BASE, codec=LexicoCodec(tolerance=0.5)),
    replace(BASE, dictionary=b"e" * 32),
    replace(BASE, page_tokens=128),
    replace(BASE, group_layers=3),
]


def test_any_field_changes_the_namespace() -> None:
    for a, b in itertools.combinations([BASE, *OTHERS], 2):
        assert a.namespace != b.namespace, (a, b)


def test_equal_specs_have_equal_namespaces() -> None:
    again = make_spec(
        weights=b"w" * 32,
        geometry=replace(GEOMETRY),
        codec="lexico",
        codec_config='{"tolerance": null, "sparsity": 8}',
        dictionary=b"d" * 32,
        page_tokens=256,
        group_layers=2,
        shard=Shard(0, 4, 0, 2),
    )
    assert again == BASE
    assert again.namespace == BASE.namespace


@dataclass(frozen=True)
class Split(RawCodec):
    """A codec whose name and configuration are cut from one text."""

    name: ClassVar[str] = "ab"
    config: str = "c"

    def config_json(self) -> str:
        return self.config


@dataclass(frozen=True)
class SplitEarlier(Split):
    name: ClassVar[str] = "a"
    config: str = "bc"


def test_neighbouring_fields_do_not_run_together() -> None:
    late, early = (
        replace(BASE, codec=Split(), dictionary=b""),
        replace(BASE, codec=SplitEarlier(), dictionary=b""),
    )
    assert late.namespace != early.namespace


def test_namespace_is_the_length_prefixed_digest() -> None:
    """The formula of docs/format.md, written a second time."""
    parts = [
        b"w" * 32,
        b"",
        GEOMETRY.canonical(),
        struct.pack("<IIII", 0, 4, 0, 2),
        b"lexico",
        b'{"sparsity":8,"tolerance":null}',
        b"d" * 32,
        struct.pack("<II", 256, 2),
    ]
    data = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    expected = hashlib.blake2b(data, digest_size=32, person=b"lexico-namespace").digest()
    assert BASE.namespace == expected


SPECS = st.builds(
    lambda layers, heads, dim, tokens, group, lexico: CacheSpec(
        weights=bytes(32),
        geometry=Geometry(layers, heads, dim),
        codec=LexicoCodec(min(8, dim)) if lexico else RawCodec(),
        dictionary=bytes(32) if lexico else b"",
        page_tokens=tokens,
        group_layers=min(layers, max(group, math.ceil(layers / MAX_GROUPS))) if group else 0,
    ),
    st.integers(1, 512),
    st.integers(1, 64),
    st.integers(1, 256),
    st.integers(1, 4096),
    st.integers(0, 512),
    st.booleans(),
)


@given(SPECS)
def test_groups_partition_the_layers(spec: CacheSpec) -> None:
    ranges = [spec.group_range(group) for group in range(spec.groups)]
    assert [layer for r in ranges for layer in r] == list(range(spec.geometry.layers))
    assert all(len(r) == spec.group_layers for r in ranges[:-1])
    assert 1 <= len(ranges[-1]) <= spec.group_layers
    assert len(ranges) <= MAX_GROUPS
    assert sum(spec.group_bytes(group) for group in range(spec.groups)) == spec.page_bytes
    for group, layers in enumerate(ranges):
        g = spec.geometry
        shape = (len(layers), 2, spec.page_tokens, g.kv_heads, g.head_dim)
        assert spec.group_shape(group) == shape


@given(SPECS)
def test_default_group_holds_about_a_mebibyte(spec: CacheSpec) -> None:
    spec = replace(spec, group_layers=0)
    layer = spec.codec.encoded_bytes(spec.geometry, spec.page_tokens)
    group = spec.group_layers * layer
    capped = spec.geometry.layers * layer > MAX_GROUPS * FRAME_TARGET_BYTES
    assert capped or spec.group_layers == 1 or group <= 2 * FRAME_TARGET_BYTES + layer
    assert spec.groups == 1 or group >= FRAME_TARGET_BYTES / 2


@pytest.mark.parametrize("codec", ["raw", "lexico"])
@pytest.mark.parametrize(
    "geometry", [Geometry(32, 8, 128), Geometry(28, 8, 128), Geometry(80, 8, 128)], ids=str
)
def test_frames_of_usual_models_are_near_the_target(codec: str, geometry: Geometry) -> None:
    """8B-like, 3B-like and 70B-like geometries at the default page size. Frames of raw 70B pages
    are of 2 MiB: there are at most 64.
    """
    dictionary = bytes(32) if codec == "lexico" else b""
    spec = make_spec(weights=bytes(32), geometry=geometry, codec=codec, dictionary=dictionary)
    layer = spec.codec.encoded_bytes(geometry, spec.page_tokens)
    for group in range(spec.groups - 1):
        assert 0.7 <= len(spec.group_range(group)) * layer / FRAME_TARGET_BYTES <= 2.0


def test_a_page_has_no_more_frames_than_a_store_takes() -> None:
    assert MAX_GROUPS == 64
    geometry = Geometry(65, 8, 128)
    assert CacheSpec(bytes(32), geometry, RawCodec(), group_layers=2).groups == 33
    with pytest.raises(ShapeMismatch, match="65 frames a page"):
        CacheSpec(bytes(32), geometry, RawCodec(), group_layers=1)
    assert CacheSpec(bytes(32), geometry, RawCodec()).groups <= MAX_GROUPS


def test_small_models_take_one_frame() -> None:
    spec = CacheSpec(bytes(32), Geometry(30, 3, 64), LexicoCodec(), bytes(32))
    assert (spec.group_layers, spec.groups) == (30, 1)


def ranks(spec: CacheSpec, tensor: int = 1, pipeline: int = 1) -> list[CacheSpec]:
    """What each rank holds of a model."""
    g = spec.geometry
    part = replace(g, layers=g.layers // pipeline, kv_heads=g.kv_heads // tensor)
    return [
        replace(
            spec,
            geometry=part,
            shard=Shard(stage * part.layers, g.layers, rank * part.kv_heads, g.kv_heads),
            group_layers=0,
        )
        for stage in range(pipeline)
        for rank in range(tensor)
    ]


@pytest.mark.parametrize("codec", ["raw", "lexico", "lexico-packed"])
def test_the_identity_is_that_of_the_whole_model_on_every_rank(codec: str) -> None:
    whole = make_spec(
        weights=b"w" * 32,
        geometry=Geometry(32, 8, 128),
        codec=codec,
        dictionary=b"" if codec == "raw" else b"d" * 32,
    )
    for tensor, pipeline in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 4), (1, 32)):
        held = ranks(whole, tensor, pipeline)
        assert len(held) == tensor * pipeline
        for spec in held:
            assert spec.identity == whole.identity
            assert spec.namespace == whole.namespace
            assert page_keys(spec, range(130)) == page_keys(whole, range(130))
            assert spec.whole == whole
            assert spec.is_whole is (tensor * pipeline == 1)
            assert spec_from_wire(spec_to_wire(spec)).namespace == whole.namespace
    with pytest.raises(Unsupported, match=r"spec\.whole"):
        ranks(whole, 2)[1].check_whole()


def test_whole_model_is_the_default_shard() -> None:
    assert BASE.shard == Shard(0, 4, 0, 2) == Shard.whole(GEOMETRY)


@pytest.mark.parametrize(
    "shard", [Shard(0, 4, 0, 2), Shard(28, 32, 6, 8), Shard(5, 512, 1022, 1024)], ids=str
)
def test_shards_that_hold_the_geometry(shard: Shard) -> None:
    assert replace(BASE, shard=shard).shard == shard


@pytest.mark.parametrize(
    "shard",
    [
        Shard(1, 4, 0, 2),
        Shard(29, 32, 0, 2),
        Shard(0, 3, 0, 2),
        Shard(0, 4, 1, 2),
        Shard(0, 4, 0, 1),
        Shard(-1, 4, 0, 2),
        Shard(0, 4, -1, 2),
        Shard(0, 0, 0, 0),
        Shard(2**32 - 4, 2**32, 0, 2),
        Shard(0, 2**32, 0, 2),
        Shard(0, 4, 0, 2**32),
        Shard(0, 513, 0, 2),
        Shard(0, 4, 0, 1025),
    ],
    ids=str,
)
def test_shards_that_do_not(shard: Shard) -> None:
    with pytest.raises(ShapeMismatch, match="spec"):
        replace(BASE, shard=shard)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"weights": b""}, InvalidInput, "weights"),
        ({"weights": b"w" * 31}, InvalidInput, "weights"),
        ({"dictionary": b""}, InvalidInput, "takes a dictionary digest"),
        ({"dictionary": b"d" * 16}, InvalidInput, "dictionary"),
        ({"codec": RawCodec()}, InvalidInput, "takes no dictionary"),
        ({"page_tokens": 0}, TokenCountMismatch, "page_tokens"),
        ({"page_tokens": -256}, TokenCountMismatch, "page_tokens"),
        ({"page_tokens": MAX_PAGE_TOKENS + 1}, TokenCountMismatch, "page_tokens"),
        ({"lora": "x" * 257}, InvalidInput, "lora"),
        ({"lora": "ü" * 129}, InvalidInput, "lora"),
        ({"group_layers": -1}, ShapeMismatch, "group_layers"),
        ({"group_layers": 5}, ShapeMismatch, "group_layers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_values_have_a_name(changes: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word) as caught:
        replace(BASE, **changes)
    assert type(caught.value) is error


def test_longest_values_that_fit() -> None:
    spec = replace(BASE, lora="ü" * 128, page_tokens=MAX_PAGE_TOKENS)
    assert len(spec.namespace) == 32


@pytest.mark.parametrize("name", ["", "RAW", "raw ", "lexico-none", "pickle", "../raw"])
def test_unknown_codec(name: str) -> None:
    with pytest.raises(UnknownCodec, match="this build has raw, lexico"):
        codec_from_config(name)


@pytest.mark.parametrize(
    "make_config",
    [
        lambda: "",
        lambda: "{",
        lambda: "[]",
        lambda: "null",
        lambda: "7",
        lambda: '"sparsity"',
        lambda: '{"sparsities": 8}',
        lambda: '{"name": "raw"}',
        lambda: '{"sparsity": 0}',
        lambda: '{"sparsity": 256}',
        lambda: '{"sparsity": -1}',
        lambda: '{"sparsity": 8.0}',
        lambda: '{"sparsity": "8"}',
        lambda: '{"sparsity": true}',
        lambda: '{"sparsity": null}',
        lambda: '{"sparsity": [8]}',
        lambda: '{"tolerance": 0}',
        lambda: '{"tolerance": 1}',
        lambda: '{"tolerance": -0.5}',
        lambda: '{"tolerance": true}',
        lambda: '{"tolerance": NaN}',
        lambda: '{"tolerance": Infinity}',
        lambda: '{"tolerance": "0.5"}',
        lambda: '{"tolerance": {}}',
        lambda: '{"sparsity": 1' + "0" * 5000 + "}",
        lambda: '{"sparsity": 1' + "0" * 4000 + "}",
        lambda: "[" * 4000,
        lambda: '{"sparsity": 8' + " " * 5000 + "}",
    ],
)
def test_codec_configuration_that_cannot_be_used(make_config: Callable[[], str]) -> None:
    with pytest.raises(ConfigurationError, match="lexico"):
        codec_from_config("lexico", make_config())


def test_more_atoms_than_components_are_refused_with_the_spec() -> None:
    most = GEOMETRY.head_dim
    replace(BASE, codec=LexicoCodec(sparsity=most))
    with pytest.raises(ConfigurationError, match=f"sparsity={most + 1}"):
        replace(BASE, codec=LexicoCodec(sparsity=most + 1))


def test_raw_takes_no_parameters() -> None:
    with pytest.raises(ConfigurationError, match="none"):
        codec_from_config("raw", '{"sparsity": 8}')


@given(prompt=st.integers(0, 5000), page_tokens=st.integers(1, 300), recent=st.integers(1, 300))
def test_all_is_reloaded_that_full_pages_hold_but_the_newest_tokens(
    prompt: int, page_tokens: int, recent: int
) -> None:
    lossy = replace(BASE, page_tokens=page_tokens)
    lossless = replace(lossy, codec=RawCodec(), dictionary=b"")
    for spec, left in ((lossy, recent), (lossless, 1)):
        tokens = spec.reloadable_tokens(prompt, recent)
        held = [token // page_tokens < prompt // page_tokens for token in range(prompt)]
        wanted = [page and token < prompt - left for token, page in enumerate(held)]
        assert wanted == [token < tokens for token in range(prompt)]
        pages = spec.pages_of(tokens)
        assert tokens <= pages * page_tokens <= prompt
        assert pages == 0 or tokens > (pages - 1) * page_tokens, "no page that is not needed"
    assert lossy.reloadable_tokens(prompt) == lossy.reloadable_tokens(prompt, 64)


@pytest.mark.parametrize("recent", [0, -1, 1.5, True, "64", None, math.nan])
def test_a_prompt_is_never_reloaded_whole(recent: Any) -> None:
    with pytest.raises(InvalidInput, match="recent_tokens="):
        BASE.reloadable_tokens(100, recent)
