"""What settings of every kind check: types, ranges, and that an error names its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self

from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError, UnknownCodec
from lexico_proto.limits import DIGEST_BYTES


@dataclass(frozen=True)
class CheckedSettings:
    """Settings that come as JSON; the fields are those of the classes below it.

    Raises:
        ConfigurationError: a value of another type; one line that names the key.
    """

    where: ClassVar[str] = "settings"
    """What a user knows the settings by, for errors."""

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_type(field.name, getattr(self, field.name), field.default)

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Self:
        """The settings of a mapping, as JSON gives it.

        Raises:
            ConfigurationError: an unknown key, or a value that cannot be used.
        """
        if not isinstance(extra, Mapping):
            raise ConfigurationError(f"{cls.where}: an object with keys and values is needed")
        known = [field.name for field in fields(cls)]
        for key in extra:
            if key not in known:
                raise cls._bad(str(key), f"unknown; there are {', '.join(known)}")
        return cls(**extra)

    @classmethod
    def digest_of(cls, key: str, text: str) -> bytes:
        """A digest that was given as hex.

        Raises:
            ConfigurationError: it is none.
        """
        try:
            digest = bytes.fromhex(text)
        except ValueError as error:
            raise cls._bad(key, f"{text!r} is no digest as hex") from error
        if len(digest) != DIGEST_BYTES:
            raise cls._bad(key, f"{len(digest)} bytes, a digest has {DIGEST_BYTES}")
        return digest

    def _check_range(self, key: str, least: int, most: int | None) -> None:
        value = getattr(self, key)
        if value < least or (most is not None and value > most):
            upto = "" if most is None else f"..{most}"
            raise self._bad(key, f"{value} is outside {least}{upto}")

    @classmethod
    def _check_type(cls, key: str, value: object, default: object) -> None:
        kind: type | tuple[type, ...]
        if key == "codec_config":
            kind, named, optional = Mapping, "an object", True
        elif isinstance(default, bool):
            kind, named, optional = bool, "true or false", False
        elif isinstance(default, float):
            kind, named, optional = (int, float), "a number", False
        elif isinstance(default, int):
            kind, named, optional = int, "an integer", False
        else:
            kind, named, optional = str, "text", default is None
        if default is MISSING or (value is None and optional):
            return
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise cls._bad(key, f"{value!r}: {named} is needed")
        if isinstance(value, str) and not (_is_utf8(value) and "\0" not in value):
            raise cls._bad(key, f"{value!r}: text that UTF-8 can say, without NUL, is needed")

    @classmethod
    def _told(cls, key: str, check: Any, *args: Any) -> Any:
        """What `check` gives; what it raises names the key."""
        try:
            return check(*args)
        except (InvalidInput, UnknownCodec) as error:
            raise cls._bad(key, error.message) from error

    @classmethod
    def _bad(cls, key: str, why: str) -> LexicoError:
        return ConfigurationError(f"{cls.where}: {key}: {why}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate, as JSON may bring it
        return False
    return True
