"""Values of settings as files and environment write them, and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from lexico_proto.limits import MAX_SECONDS
from lexico_services.settings.schema import CHOICES, Setting
from lexico_services.sizes import parse_size
from lexico_services.toml_text import is_whole

LEAST_S: Final = 0.001
"""Of seconds that are not 0: servers and stores count milliseconds."""

_WORDS: Final = {"true": True, "1": True, "false": False, "0": False}


class NotAValue(Exception):
    """What was given is no value of the setting; the text says what one is."""


def from_file(setting: Setting, value: object) -> Any:
    """The value that a TOML value stands for.

    Raises:
        NotAValue: another type, or a number that is none.
    """
    kind = setting.kind.removesuffix(" | None")
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise NotAValue("must be true or false")
    if kind in ("int", "float"):
        if isinstance(value, str) and setting.name.endswith("_bytes"):
            return _size(value)
        if kind == "int" and is_whole(value):
            return value
        if kind == "float" and (is_whole(value) or isinstance(value, float)):
            return _number(setting, value)
        raise NotAValue(_needed(setting))
    if not isinstance(value, str):
        raise NotAValue("must be a text")
    return _text(setting, value)


def from_environment(setting: Setting, text: str) -> Any:
    """The value that a variable's text stands for.

    Raises:
        NotAValue: it stands for none.
    """
    kind = setting.kind.removesuffix(" | None")
    text = text.strip()
    if kind == "bool":
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        raise NotAValue("must be true or false")
    if kind in ("int", "float"):
        size = parse_size(text) if setting.name.endswith("_bytes") else None
        if size is not None:
            return size
        try:
            value = int(text) if kind == "int" else float(text)
        except ValueError as error:
            raise NotAValue(_needed(setting)) from error
        return from_file(setting, value)
    return _text(setting, text)


def to_toml(value: object) -> str:
    """A value as TOML writes it: what `from_file` reads again."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string is a basic string of TOML, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(setting: Setting, text: str) -> Any:
    if not text and setting.default != "":
        raise NotAValue("must be a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that are no UTF-8, out of the environment
        raise NotAValue("must be UTF-8") from error
    if setting.key in CHOICES:
        if text.lower() not in CHOICES[setting.key]:
            raise NotAValue(f"must be one of {', '.join(CHOICES[setting.key])}")
        return text.lower()
    return Path(text) if setting.kind.startswith("Path") else text


def _size(text: str) -> int:
    size = parse_size(text)
    if size is None:
        raise NotAValue('must be bytes, or a text such as "384 MiB"')
    return size


def _number(setting: Setting, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise NotAValue("must be a finite number")
    if setting.name.endswith("_s") and number and not LEAST_S <= abs(number) <= MAX_SECONDS:
        raise NotAValue(f"must be 0, or {LEAST_S:g} to {MAX_SECONDS:.0f} seconds")
    return number


def _needed(setting: Setting) -> str:
    if setting.name.endswith("_bytes"):
        return 'must be bytes, or a text such as "384 MiB"'
    return (
        "must be a whole number of 64 bits"
        if setting.kind.startswith("int")
        else "must be a number"
    )
