"""Codecs by name and by id."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Final

from lexico_codec.codecs.adaptive.codec import AdaptiveCodec
from lexico_codec.codecs.codec import Codec, Place
from lexico_codec.codecs.lexico.codec import LexicoCodec
from lexico_codec.codecs.lossless import LosslessCodec
from lexico_codec.codecs.packed.codec import PackedCodec
from lexico_codec.codecs.raw import RawCodec
from lexico_codec.codecs.residual.codec import ResidualCodec
from lexico_codec.codecs.sparse import GroupCodes, SparseCodec
from lexico_codec.limits import MAX_CONFIG_BYTES
from lexico_proto.errors import ConfigurationError, UnknownCodec

__all__ = [
    "CODECS",
    "AdaptiveCodec",
    "Codec",
    "GroupCodes",
    "LexicoCodec",
    "LosslessCodec",
    "PackedCodec",
    "Place",
    "RawCodec",
    "ResidualCodec",
    "SparseCodec",
    "codec_from_config",
]

CODECS: Final[dict[str, type[Codec]]] = {
    cls.name: cls
    for cls in (
        RawCodec,
        LexicoCodec,
        PackedCodec,
        ResidualCodec,
        LosslessCodec,
        AdaptiveCodec,
    )
}
"""name → class. A new codec is one more class here."""


def codec_from_config(name: str, config_json: str = "{}") -> Codec:
    """A codec from what travels.

    Args:
        name: as in `CODECS`.
        config_json: its parameters as a JSON object; those left out take their defaults.

    Raises:
        UnknownCodec: no codec of that name.
        ConfigurationError: no JSON object, an unknown parameter, or a value that cannot be used.
    """
    cls = CODECS.get(name)
    if cls is None:
        raise UnknownCodec(f"codec {name!r}: this build has {', '.join(CODECS)}")
    if len(config_json) > MAX_CONFIG_BYTES:
        raise ConfigurationError(f"codec {name}: configuration over {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(config_json)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"codec {name}: configuration is no JSON: {error}") from error
    known = {field.name for field in fields(cls)}
    if not isinstance(config, dict) or not config.keys() <= known:
        raise ConfigurationError(
            f"codec {name}: its parameters are {', '.join(sorted(known)) or 'none'}"
        )
    return cls(**config)
