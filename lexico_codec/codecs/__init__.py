"""Codecs by name and by id.

A codec is imported when it is first named: most processes use one of them, and a reload server,
which decodes nothing, uses none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from lexico_codec.limits import MAX_CONFIG_BYTES
from lexico_proto.errors import ConfigurationError, UnknownCodec

if TYPE_CHECKING:  # `__getattr__` gives them
    from lexico_codec.codecs.adaptive import AdaptiveCodec
    from lexico_codec.codecs.codec import Codec, Place
    from lexico_codec.codecs.lexico import LexicoCodec
    from lexico_codec.codecs.lossless import LosslessCodec
    from lexico_codec.codecs.packed import PackedCodec
    from lexico_codec.codecs.raw import RawCodec
    from lexico_codec.codecs.residual import ResidualCodec
    from lexico_codec.codecs.sparse import GroupCodes, SparseCodec

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


def _adaptive() -> type[Codec]:
    from lexico_codec.codecs.adaptive import AdaptiveCodec

    return AdaptiveCodec


def _lexico() -> type[Codec]:
    from lexico_codec.codecs.lexico import LexicoCodec

    return LexicoCodec


def _lossless() -> type[Codec]:
    from lexico_codec.codecs.lossless import LosslessCodec

    return LosslessCodec


def _packed() -> type[Codec]:
    from lexico_codec.codecs.packed import PackedCodec

    return PackedCodec


def _raw() -> type[Codec]:
    from lexico_codec.codecs.raw import RawCodec

    return RawCodec


def _residual() -> type[Codec]:
    from lexico_codec.codecs.residual import ResidualCodec

    return ResidualCodec


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]()
    if name in ("Codec", "Place"):
        from lexico_codec.codecs import codec

        return getattr(codec, name)
    if name in ("GroupCodes", "SparseCodec"):
        from lexico_codec.codecs import sparse

        return getattr(sparse, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Codecs(Mapping[str, "type[Codec]"]):
    """name → class, which is imported when it is asked for."""

    def __init__(self, loaders: dict[str, Callable[[], type[Codec]]]) -> None:
        self._loaders = loaders

    def __getitem__(self, name: str) -> type[Codec]:
        return self._loaders[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


CODECS: Final = _Codecs(
    {
        "raw": _raw,
        "lexico": _lexico,
        "lexico-packed": _packed,
        "lexico-residual": _residual,
        "lossless": _lossless,
        "lexico-adaptive": _adaptive,
    }
)
"""name → class. A new codec is a line here and in `_CLASSES`, and a function above."""

_CLASSES: Final = {
    "AdaptiveCodec": _adaptive,
    "LexicoCodec": _lexico,
    "LosslessCodec": _lossless,
    "PackedCodec": _packed,
    "RawCodec": _raw,
    "ResidualCodec": _residual,
}


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
