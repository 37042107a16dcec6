"""TOML that an operator wrote."""

from __future__ import annotations

import tomllib
from typing import Any, Final

from lexico_proto.errors import ConfigurationError

MAX_NUMBER: Final = 1 << 63
"""Whole numbers lie below it, both ways: TOML promises no more, and no setting needs it."""


def read_toml(where: object, data: bytes) -> dict[str, Any]:
    """The document in a file's bytes.

    Args:
        where: the file, for the error.
        data: its bytes.

    Raises:
        ConfigurationError: they are no TOML.
    """
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of text, of TOML, of a number with 5000 digits
        why = " ".join(str(error).split())
        raise ConfigurationError(f"{where}: is no TOML: {why}") from error


def is_whole(value: object) -> bool:
    """Whether a value is a whole number that a setting may have."""
    return (
        isinstance(value, int) and not isinstance(value, bool) and -MAX_NUMBER <= value < MAX_NUMBER
    )
