"""Presets: codecs and their parameters under names that say what they cost.

A namespace holds the codec and its parameters, never the preset's name: nodes that name a preset
and nodes that spell out its codec share pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from lexico_codec.codecs import CODECS, Codec, codec_from_config
from lexico_proto.errors import ConfigurationError, UnknownCodec


@dataclass(frozen=True)
class Preset:
    """A name for a codec and its parameters."""

    name: str
    codec: str
    """As in `CODECS`."""
    config: Mapping[str, Any]
    """Parameters; those left out take their defaults."""
    meaning: str
    """What it costs, in a line."""

    @property
    def config_json(self) -> str:
        """The parameters as JSON, as `make_spec` takes them."""
        return json.dumps(dict(self.config), sort_keys=True, separators=(",", ":"))


def _preset(name: str, codec: str, meaning: str, **config: Any) -> Preset:
    return Preset(name, codec, MappingProxyType(config), meaning)


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        made.name: made
        for made in (
            _preset("lossless", "lossless", "the same bits, needs no dictionary set"),
            _preset("near", "lexico-residual", "KL about 0.005", quality="near"),
            _preset("balanced", "lexico-residual", "KL about 0.02", quality="balanced"),
            _preset("small", "lexico-residual", "KL about 0.05", quality="small"),
            _preset("paper", "lexico", "the codec of arXiv 2412.08890 at s=8", sparsity=8),
        )
    }
)
"""name → preset. KL is in nats a token against the uncompressed cache, on the model and the kind of
text that the dictionary set was trained on."""


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigurationError: there is none; naming those that there are.
    """
    found = PRESETS.get(name)
    if found is None:
        raise ConfigurationError(f"preset {name!r}: there are {', '.join(PRESETS)}")
    return found


def codec_named(name: str, config: Mapping[str, Any] | None = None) -> Codec:
    """The codec that a user asks for by the name of a preset or of a codec.

    Args:
        name: as in `PRESETS` or `CODECS`. One that is in both means the same in both.
        config: the codec's parameters; None or empty for its defaults. A preset takes none.

    Raises:
        UnknownCodec: neither a preset nor a codec of this build.
        ConfigurationError: parameters beside a preset, or ones that the codec cannot use.
    """
    if name in CODECS:
        return codec_from_config(name, json.dumps(dict(config or {})))
    if name not in PRESETS:
        raise UnknownCodec(
            f"codec {name!r}: this build has presets {', '.join(PRESETS)} and codecs "
            f"{', '.join(CODECS)}"
        )
    chosen = PRESETS[name]
    if config:
        raise ConfigurationError(
            f"preset {name} has its parameters: leave codec_config out, or give codec "
            f"{chosen.codec} and all of its parameters"
        )
    return codec_from_config(chosen.codec, chosen.config_json)


def spoken(name: str) -> str:
    """What a name that a user gave is, for messages: `preset near`, `codec lexico`."""
    return f"{'codec' if name in CODECS else 'preset'} {name}"
