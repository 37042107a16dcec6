"""The ways to store a cache that are compared: codecs, their settings, and the sets they take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from lexico_codec.codecs import CODECS, Codec, codec_from_config
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.presets import PRESETS, codec_named
from lexico_codec.sets.dictionary import DictionarySet, builtin_sets, load_builtin
from lexico_codec.sets.transform import check_run
from lexico_codec.spec import CacheSpec, make_spec
from lexico_lab.evaluation.settings import EvalSettings
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    InvalidInput,
    ShapeMismatch,
    Unsupported,
)

SPARSITIES: Final = (2, 4, 8, 12)
QUALITIES: Final = ("near", "balanced", "small")


@dataclass(frozen=True, eq=False)
class Way:
    """One codec at one setting, over one dictionary set."""

    name: str
    """Unique within a report."""
    method: str
    """Settings of one method make one curve."""
    spec: CacheSpec
    dictionary: DictionarySet | None
    set_name: str = ""
    """As it was given; empty for a codec without one."""


def way_of(
    name: str,
    codec: str,
    config: Mapping[str, Any],
    geometry: Geometry,
    page_tokens: int,
    dictionary: DictionarySet | None = None,
    weights: bytes = bytes(32),
) -> Way:
    """A codec with these parameters.

    Args:
        name: of the way; the codec's is its method.
        codec: its name.
        config: its parameters.
        geometry: of the cache.
        page_tokens: tokens a page.
        dictionary: the set that it codes over.
        weights: digest of the model, 32 bytes, where pages are to be told from another's.

    Raises:
        UnknownCodec, ConfigurationError: no such codec, or parameters that it does not take.
    """
    spec = make_spec(
        weights=weights,
        geometry=geometry,
        codec=codec,
        codec_config=json.dumps(config),
        dictionary=dictionary.digest if dictionary else b"",
        page_tokens=page_tokens,
    )
    return Way(name, codec, spec, dictionary)


@dataclass(frozen=True, eq=False)
class NamedSet:
    """A dictionary set, and what the user calls it."""

    name: str
    content: DictionarySet


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is compared, and what could not be."""

    ways: tuple[Way, ...]
    left_out: tuple[tuple[str, str], ...]
    """(name, reason) of defaults that do not fit the model."""


def load_sets(names: Sequence[str], geometry: Geometry) -> list[NamedSet]:
    """The sets of a run: those named, or the built-in ones of the model's shape and rotation.

    Raises:
        DictionaryMismatch: one that was made for another geometry.
        ConfigurationError, InvalidInput: a file that cannot be read, or is no set.
    """
    if not names:
        built_in = [NamedSet(name, load_builtin(name)) for name in builtin_sets()]
        return [one for one in built_in if _was_made_for(one.content, geometry)]
    found: list[NamedSet] = []
    for name in names:
        content = load_builtin(name) if name in builtin_sets() else DictionarySet.load(name)
        content.check_fits(geometry.layers, geometry.head_dim)
        _check_rotation(name, content, geometry)
        _check_heads(name, content, geometry)
        short = name if name in builtin_sets() else Path(name).stem
        if any(one.name == short for one in found):
            short = f"{short} {content.digest.hex()[:8]}"
        if all(one.content.digest != content.digest for one in found):
            found.append(NamedSet(short, content))
    return found


def choose_ways(
    settings: EvalSettings, geometry: Geometry, weights: bytes, sets: Sequence[NamedSet]
) -> Chosen:
    """Every way to store that a run compares, `raw` first as the control.

    Raises:
        UnknownCodec, ConfigurationError, DictionaryMismatch: a codec that was asked for and
            cannot run.
    """
    ways: list[Way] = []
    left_out: list[tuple[str, str]] = []

    def add(codec: str, config: dict[str, Any], named: NamedSet | None, among: int) -> None:
        name = f"{codec} {_settings_text(config)}".strip()
        content = named.content if named else None
        way = way_of(name, codec, config, geometry, settings.page_tokens, content, weights)
        if named is not None:
            way = replace(way, set_name=named.name)
        if named is not None and among > 1:
            method = f"{codec} ({named.name})"
            way = replace(way, name=f"{name} ({named.name})", method=method)
        if all(one.name != way.name for one in ways):
            ways.append(way)

    for text in ["raw", *(settings.codecs or [name for name in CODECS if name != "raw"])]:
        codec, configs = _requested(text, geometry)
        cls = CODECS[codec]
        takers = [one for one in sets if serves(one.content, cls)]
        if cls.needs_dictionary and not takers:
            reason = _why_no_set(codec, sets)
            if settings.codecs:
                raise reason
            left_out.append((codec, reason.message))
            continue
        for config in configs:
            for named in takers if cls.needs_dictionary else [None]:
                try:
                    add(codec, _for_set(config, cls, named), named, len(takers))
                except (InvalidInput, Unsupported) as error:
                    if settings.codecs:
                        raise
                    left_out.append((f"{codec} {_settings_text(config)}".strip(), error.message))
    return Chosen(tuple(ways), tuple(left_out))


def serves(dictionary: DictionarySet, codec: type[Codec]) -> bool:
    """Whether a codec can code over a set."""
    return codec.needs_dictionary and dictionary.serves(codec.name)


def grid(codec: type[Codec], geometry: Geometry) -> list[dict[str, Any]]:
    """Settings worth plotting of a codec that was asked for by name alone."""
    known = {field.name for field in fields(codec)}
    if "quality" in known:
        return [{"quality": quality} for quality in QUALITIES]
    if "sparsity" in known:
        return [{"sparsity": s} for s in SPARSITIES if s <= geometry.head_dim]
    return [{}]


def _requested(text: str, geometry: Geometry) -> tuple[str, list[dict[str, Any]]]:
    """The codec that `NAME`, `NAME:{JSON}` or a preset's name asks for, and its settings."""
    name, _, config_text = text.partition(":")
    chosen = codec_named(name)  # refuses what is neither codec nor preset
    if name not in CODECS:
        if config_text:
            raise ConfigurationError(f"codec {text!r}: a preset has its parameters")
        return chosen.name, [dict(PRESETS[name].config)]
    if not config_text:
        return name, grid(CODECS[name], geometry)
    codec_from_config(name, config_text)  # refuses what is no configuration of it
    config: dict[str, Any] = json.loads(config_text)
    return name, [config]


def _for_set(config: dict[str, Any], codec: type[Codec], named: NamedSet | None) -> dict[str, Any]:
    """Settings, with what the set leaves no choice about."""
    transform = named.content.family("residual") if named else None
    known = {field.name for field in fields(codec)}
    if transform is None or "run_layers" in config or "run_layers" not in known:
        return config
    whole = transform.run_layers == transform.layers
    return config if whole else {**config, "run_layers": transform.run_layers}


def _settings_text(config: dict[str, Any]) -> str:
    short = {"sparsity": "s"}
    return " ".join(f"{short.get(key, key)}={value}" for key, value in sorted(config.items()))


def _why_no_set(codec: str, sets: Sequence[NamedSet]) -> ConfigurationError | DictionaryMismatch:
    if not sets:
        return ConfigurationError(
            f"codec {codec}: no built-in dictionary set fits the model: give --set; "
            "`lexico train` makes one"
        )
    given = ", ".join(one.name for one in sets)
    return DictionaryMismatch(f"codec {codec}: no dictionary set given serves it ({given})")


def _was_made_for(dictionary: DictionarySet, geometry: Geometry) -> bool:
    """Shape and rotation."""
    shape = (dictionary.layers, dictionary.info.kv_heads, dictionary.head_dim)
    own = geometry.rope.canonical() if geometry.rope else b""
    fits = shape == (geometry.layers, geometry.kv_heads, geometry.head_dim)
    return fits and _rotation(dictionary) == own


def _check_rotation(name: str, dictionary: DictionarySet, geometry: Geometry) -> None:
    """Keys under another rotation would fit badly; a set that does not say is taken as it is."""
    own = geometry.rope.canonical() if geometry.rope else b""
    if dictionary.info.rope and _rotation(dictionary) != own:
        raise DictionaryMismatch(
            f"dictionary set {name}: made for {dictionary.info.model}, whose rotary embedding is "
            "not this model's"
        )


def _check_heads(name: str, dictionary: DictionarySet, geometry: Geometry) -> None:
    """Sets with means or a transform of every head have room for some heads alone."""
    transform = dictionary.family("residual")
    if transform is not None:
        try:
            layers = transform.run_layers
            check_run(transform, 0, layers, geometry.kv_heads, geometry.head_dim)
        except ShapeMismatch as error:
            raise DictionaryMismatch(f"dictionary set {name}: {error.message}") from error
    elif dictionary.unrotated and dictionary.info.kv_heads < geometry.kv_heads:
        raise DictionaryMismatch(
            f"dictionary set {name}: of {dictionary.info.kv_heads} KV heads, the model has "
            f"{geometry.kv_heads}"
        )


def _rotation(dictionary: DictionarySet) -> bytes:
    found = dictionary.info.rope
    try:
        return Rope(**{**found, "inv_freq": tuple(found["inv_freq"])}).canonical() if found else b""
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"dictionary set of {dictionary.info.model}: rope ({error})") from error
