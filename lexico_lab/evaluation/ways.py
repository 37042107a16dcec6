"""The ways to store a cache that are compared: codecs, their settings, and the sets they take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from lexico_codec.codecs import CODECS, Codec, codec_from_config
from lexico_codec.geometry import Geometry
from lexico_codec.presets import PRESETS, codec_named
from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_codec.sets.choose import check_model, fitting_builtin
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec, make_spec
from lexico_lab.evaluation.settings import EvalSettings
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    InvalidInput,
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
        return [NamedSet(name, content) for name, content in fitting_builtin(geometry)]
    found: list[NamedSet] = []
    for name in names:
        content = load_builtin(name) if name in builtin_sets() else DictionarySet.load(name)
        check_model(content, geometry, name)
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
        takers = [one for one in sets if one.content.serves(codec)]
        if cls.needs_dictionary and not takers:
            reason = _why_no_set(codec, sets)
            if settings.codecs:
                raise reason
            left_out.append((codec, reason.message))
            continue
        for config in configs:
            for named in takers if cls.needs_dictionary else [None]:
                try:
                    add(codec, _for_set(config, cls, named, geometry), named, len(takers))
                except (InvalidInput, Unsupported) as error:
                    if settings.codecs:
                        raise
                    left_out.append((f"{codec} {_settings_text(config)}".strip(), error.message))
    return Chosen(tuple(ways), tuple(left_out))


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


def _for_set(
    config: dict[str, Any], codec: type[Codec], named: NamedSet | None, geometry: Geometry
) -> dict[str, Any]:
    """Settings, with what the set leaves no choice about."""
    if named is None:
        return config
    asked = codec_from_config(codec.name, json.dumps(config))
    chosen = asked.for_set(named.content, geometry)
    names = (field.name for field in fields(chosen))
    return config | {
        name: getattr(chosen, name)
        for name in names
        if getattr(chosen, name) != getattr(asked, name)
    }


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
