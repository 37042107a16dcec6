"""Which codec and dictionary set serve a model: presets, built-in sets, sets that were given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lexico_codec.codecs import Codec
from lexico_codec.codecs.residual.codec import ResidualCodec
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.presets import codec_named, spoken
from lexico_codec.sets.dictionary import DictionarySet, builtin_sets, load_builtin
from lexico_codec.sets.transform import Transform, check_run
from lexico_proto.errors import ConfigurationError, DictionaryMismatch, ShapeMismatch

_log = logging.getLogger(__name__)


def choose(
    name: str,
    config: Mapping[str, Any] | None,
    dictionary: DictionarySet | bytes | None,
    geometry: Geometry,
) -> tuple[Codec, DictionarySet | bytes | None]:
    """The codec of a name, and the set it codes with: the one given, else the built-in one.

    Args:
        name: of a preset or a codec.
        config: parameters of a codec; a preset takes none.
        dictionary: a set, or the digest of one that is registered, which is not looked at here.
        geometry: of the model.

    Raises:
        UnknownCodec: no preset and no codec of that name.
        ConfigurationError: parameters that cannot be used, or no single built-in set serves.
        DictionaryMismatch: the set given is for another shape or another codec.
    """
    codec = codec_named(name, config)
    if dictionary is None and codec.needs_dictionary:
        dictionary = _builtin_for(geometry, name, codec)
    if not isinstance(dictionary, DictionarySet):
        return codec, dictionary
    dictionary.check_fits(geometry.layers, geometry.head_dim)
    if codec.needs_dictionary and not dictionary.serves(codec.name):
        raise DictionaryMismatch(
            f"{_needs(name, codec)}; the set of {dictionary.info.model} that was given is for "
            "another codec"
        )
    if isinstance(codec, ResidualCodec):
        codec = _in_runs(codec, dictionary, geometry)
    return codec, dictionary


def _in_runs(codec: ResidualCodec, dictionary: DictionarySet, geometry: Geometry) -> ResidualCodec:
    """How many layers are coded together is the set's to say, where the user has not."""
    transform: Transform = dictionary.family("residual")
    if codec.run_layers == 0 and transform.run_layers != geometry.layers:
        codec = replace(codec, run_layers=transform.run_layers)
    try:
        layers = codec.run_layers or geometry.layers
        check_run(transform, 0, layers, geometry.kv_heads, geometry.head_dim)
    except ShapeMismatch as error:
        raise DictionaryMismatch(f"codec {codec.name}: {error.message}") from error
    return codec


def _builtin_for(geometry: Geometry, name: str, codec: Codec) -> DictionarySet:
    shape = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    # Sets are of keys turned, or turned back, in one way: under another they would fit badly.
    rope = geometry.rope.canonical() if geometry.rope else b""
    sets = [load_builtin(found) for found in builtin_sets()]
    fitting = [
        s for s in sets if (s.layers, s.info.kv_heads, s.head_dim) == shape and _rope_of(s) == rope
    ]
    serving = [s for s in fitting if s.serves(codec.name)]
    if len(serving) != 1:
        why = "that serve equally" if serving else "that fit it, for other codecs"
        found = ", ".join(s.info.model for s in serving or fitting) or "none"
        raise ConfigurationError(
            f"{_needs(name, codec)} ({geometry.layers} layers, {geometry.kv_heads} KV heads, "
            f"head_dim {geometry.head_dim}): give it as `dictionary`. Built-in sets {why}: {found}"
        )
    _log.info(
        "built-in dictionary set chosen: codec=%s trained_on=%s", codec.name, serving[0].info.model
    )
    return serving[0]


def _needs(name: str, codec: Codec) -> str:
    return (
        f"{spoken(name)} needs a set trained with `lexico train --codec "
        f"{codec.set_of or codec.name}` for this model"
    )


def _rope_of(dictionary: DictionarySet) -> bytes:
    rope = dictionary.info.rope
    return (
        Rope(tuple(rope["inv_freq"]), rope["pairing"], rope["scale"]).canonical() if rope else b""
    )
