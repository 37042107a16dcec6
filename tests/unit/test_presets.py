"""Presets: each names a codec and its parameters, and anything else is refused by name."""

from __future__ import annotations

import dataclasses

import pytest

from lexico_codec.codecs import CODECS, LexicoCodec, LosslessCodec, RawCodec, codec_from_config
from lexico_codec.geometry import Geometry
from lexico_codec.presets import PRESETS, codec_named, preset, spoken
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import ConfigurationError, UnknownCodec

GEOMETRY = Geometry(4, 2, 64, "float16")


def test_presets_are_those_of_the_documentation() -> None:
    """Changing what one means parts the nodes that use it: a new meaning is a new name."""
    assert {name: (p.codec, p.config_json) for name, p in PRESETS.items()} == {
        "lossless": ("lossless", "{}"),
        "near": ("lexico-residual", '{"quality":"near"}'),
        "balanced": ("lexico-residual", '{"quality":"balanced"}'),
        "small": ("lexico-residual", '{"quality":"small"}'),
        "paper": ("lexico", '{"sparsity":8}'),
    }
    assert all(p.name == name and p.meaning for name, p in PRESETS.items())


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_codec_of_this_build(name: str) -> None:
    codec = codec_named(name)
    assert codec.name == preset(name).codec
    assert codec == codec_from_config(preset(name).codec, preset(name).config_json)
    for parameter, value in preset(name).config.items():
        assert getattr(codec, parameter) == value
    assert codec_named(name, {}) == codec


@pytest.mark.parametrize("name", PRESETS)
def test_the_namespace_is_that_of_the_codec(name: str) -> None:
    codec = codec_named(name)
    digest = b"d" * 32 if codec.needs_dictionary else b""
    spelled = make_spec(
        weights=bytes(32),
        geometry=GEOMETRY,
        codec=preset(name).codec,
        codec_config=preset(name).config_json,
        dictionary=digest,
    )
    assert CacheSpec(bytes(32), GEOMETRY, codec, digest).namespace == spelled.namespace


def test_presets_differ() -> None:
    codecs = [codec_named(name) for name in PRESETS]
    assert len({(codec.name, codec.config_json()) for codec in codecs}) == len(PRESETS)


def test_a_preset_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("paper").codec = "raw"  # type: ignore[misc]
    with pytest.raises(TypeError):
        preset("paper").config["sparsity"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        PRESETS["best"] = preset("paper")  # type: ignore[index]


def test_names_of_presets_and_codecs_mean_the_same_where_they_meet() -> None:
    for name in PRESETS.keys() & CODECS.keys():
        assert codec_named(name) == codec_from_config(name)
        assert preset(name).codec == name


def test_codecs_are_chosen_as_before() -> None:
    assert codec_named("raw") == RawCodec()
    assert codec_named("lossless") == LosslessCodec()
    assert codec_named("lexico") == LexicoCodec() == codec_named("paper")
    assert codec_named("lexico", {"sparsity": 4}) == LexicoCodec(sparsity=4)
    with pytest.raises(ConfigurationError, match="parameters are"):
        codec_named("lexico", {"quality": "near"})


@pytest.mark.parametrize("name", ["", "best", "Near", "near ", "lexico residual"])
def test_unknown_names_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match="lossless, near, balanced, small, paper"):
        preset(name)
    with pytest.raises(UnknownCodec, match=r"lossless, near, balanced, small, paper.*raw, lexico"):
        codec_named(name)


@pytest.mark.parametrize("name", ["near", "balanced", "small", "paper"])
def test_a_preset_takes_no_parameters(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"preset {name} .*codec {preset(name).codec}"):
        codec_named(name, {"sparsity": 4})


def test_how_messages_name_them() -> None:
    assert [spoken(name) for name in ("near", "raw", "lossless")] == [
        "preset near",
        "codec raw",
        "codec lossless",
    ]
