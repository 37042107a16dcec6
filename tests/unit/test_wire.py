"""Specs as messages: what arrives is what was sent, or an error that names the field."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import Codec, LexicoCodec, RawCodec
from lexico_codec.geometry import DTYPES, Geometry, Rope
from lexico_codec.spec import CacheSpec, Shard
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto.errors import (
    ConfigurationError,
    InvalidInput,
    LexicoError,
    ShapeMismatch,
    TokenCountMismatch,
    UnknownCodec,
    Unsupported,
)
from lexico_proto.limits import MAX_GROUPS
from lexico_proto.v1 import types_pb2 as pb

ROPES = st.builds(
    lambda inv_freq, pairing, scale: Rope(tuple(inv_freq), pairing, scale),
    st.lists(st.floats(0, 1e30), min_size=1, max_size=8),
    st.sampled_from(["half", "interleaved"]),
    st.floats(2**-20, 2**20),
)
GEOMETRIES = st.builds(
    Geometry,
    st.integers(1, 512),
    st.integers(1, 1024),
    st.integers(16, 1024),
    st.sampled_from(sorted(DTYPES)),
    st.none() | ROPES,
)


def codecs(head_dim: int) -> st.SearchStrategy[Codec]:
    tolerances = st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True)
    sparsities = st.integers(1, min(255, head_dim))
    return st.just(RawCodec()) | st.builds(LexicoCodec, sparsities, tolerances)


@st.composite
def specs(draw: st.DrawFn) -> CacheSpec:
    geometry: Geometry = draw(GEOMETRIES)
    codec = draw(codecs(geometry.head_dim))
    total_layers = draw(st.integers(geometry.layers, 512))
    total_heads = draw(st.integers(geometry.kv_heads, 1024))
    return CacheSpec(
        weights=draw(st.binary(min_size=32, max_size=32)),
        geometry=geometry,
        codec=codec,
        dictionary=draw(st.binary(min_size=32, max_size=32)) if codec.needs_dictionary else b"",
        page_tokens=draw(st.integers(1, 4096)),
        group_layers=draw(
            st.just(0) | st.integers(math.ceil(geometry.layers / MAX_GROUPS), geometry.layers)
        ),
        lora=draw(st.text(max_size=64)),
        salt=draw(st.binary(max_size=256)),
        shard=Shard(
            draw(st.integers(0, total_layers - geometry.layers)),
            total_layers,
            draw(st.integers(0, total_heads - geometry.kv_heads)),
            total_heads,
        ),
    )


@given(specs())
def test_spec_survives_the_wire(spec: CacheSpec) -> None:
    data = spec_to_wire(spec).SerializeToString(deterministic=True)
    back = spec_from_wire(pb.CacheSpec.FromString(data))
    assert back == spec
    assert back.namespace == spec.namespace
    assert spec_to_wire(back).SerializeToString(deterministic=True) == data


BASE = CacheSpec(
    weights=b"w" * 32,
    geometry=Geometry(4, 2, 64, "float16", Rope((1.0, 0.5))),
    codec=LexicoCodec(),
    dictionary=b"d" * 32,
)
Change = Callable[[pb.CacheSpec], object]
BAD: list[tuple[str, Change, type[LexicoError], str]] = [
    ("empty", lambda m: m.Clear(), InvalidInput, "dtype"),
    ("no-geometry", lambda m: m.ClearField("geometry"), InvalidInput, "dtype"),
    ("no-dtype", lambda m: m.geometry.ClearField("dtype"), InvalidInput, "dtype"),
    ("later-dtype", lambda m: setattr(m.geometry, "dtype", 77), InvalidInput, "dtype code 77"),
    ("no-layers", lambda m: m.geometry.ClearField("layers"), ShapeMismatch, "layers"),
    ("layers", lambda m: setattr(m.geometry, "layers", 2**32 - 1), ShapeMismatch, "layers"),
    ("heads", lambda m: setattr(m.geometry, "kv_heads", 2**31), ShapeMismatch, "kv_heads"),
    ("head-dim", lambda m: setattr(m.geometry, "head_dim", 0), ShapeMismatch, "head_dim"),
    (
        "no-pairing",
        lambda m: m.geometry.rope.ClearField("pairing"),
        InvalidInput,
        "pairing code 0",
    ),
    (
        "later-pairing",
        lambda m: setattr(m.geometry.rope, "pairing", 9),
        InvalidInput,
        "pairing code 9",
    ),
    ("no-scale", lambda m: m.geometry.rope.ClearField("scale"), ConfigurationError, "scale"),
    (
        "nan-scale",
        lambda m: setattr(m.geometry.rope, "scale", float("nan")),
        ConfigurationError,
        "scale",
    ),
    (
        "no-inv-freq",
        lambda m: m.geometry.rope.ClearField("inv_freq"),
        ConfigurationError,
        "inv_freq",
    ),
    (
        "inf-inv-freq",
        lambda m: m.geometry.rope.inv_freq.append(float("inf")),
        ConfigurationError,
        "inv_freq",
    ),
    (
        "long-inv-freq",
        lambda m: m.geometry.rope.inv_freq.extend([1.0] * 100_000),
        ShapeMismatch,
        "rope turns",
    ),
    ("no-groups", lambda m: m.ClearField("group_layers"), InvalidInput, "group_layers"),
    ("groups", lambda m: setattr(m, "group_layers", 5), ShapeMismatch, "group_layers"),
    ("no-shard", lambda m: m.ClearField("shard"), ShapeMismatch, "shard"),
    ("shard", lambda m: setattr(m.shard, "first_layer", 1), ShapeMismatch, "shard"),
    ("large-shard", lambda m: setattr(m.shard, "total_heads", 2**32 - 1), ShapeMismatch, "model"),
    ("no-weights", lambda m: m.ClearField("weights"), InvalidInput, "weights"),
    ("long-weights", lambda m: setattr(m, "weights", bytes(33)), InvalidInput, "weights"),
    ("no-codec", lambda m: m.ClearField("codec"), UnknownCodec, "this build has"),
    ("later-codec", lambda m: setattr(m, "codec", "zip"), UnknownCodec, "'zip'"),
    ("no-config", lambda m: m.ClearField("codec_config"), ConfigurationError, "JSON"),
    ("config", lambda m: setattr(m, "codec_config", '{"s":1}'), ConfigurationError, "parameters"),
    ("no-dictionary", lambda m: m.ClearField("dictionary"), InvalidInput, "dictionary"),
    ("no-page-tokens", lambda m: m.ClearField("page_tokens"), TokenCountMismatch, "page_tokens"),
    (
        "page-tokens",
        lambda m: setattr(m, "page_tokens", 2**32 - 1),
        TokenCountMismatch,
        "page_tokens",
    ),
    ("lora", lambda m: setattr(m, "lora", "x" * 10_000), InvalidInput, "lora"),
]


@pytest.mark.parametrize(("change", "error", "word"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_message_names_the_field(change: Change, error: type[LexicoError], word: str) -> None:
    message = spec_to_wire(BASE)
    change(message)
    with pytest.raises(error, match=word) as caught:
        spec_from_wire(message)
    assert type(caught.value) is error


@given(st.binary(max_size=200))
def test_random_fields_never_leak_another_error(data: bytes) -> None:
    message = spec_to_wire(BASE)
    try:
        message.MergeFromString(data)
    except Exception:  # noqa: BLE001 - no message: gRPC refuses it before us
        return
    # INVALID_ARGUMENT or UNIMPLEMENTED: the caller's fault
    with contextlib.suppress(InvalidInput, Unsupported):
        spec_from_wire(message)
