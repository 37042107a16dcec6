"""What a call is known by, on both sides: in log lines, in errors and in spans."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final

METADATA_KEY: Final = "lexico-request-id"
"""Of a call, and of the trailing metadata of one that failed."""
MAX_CHARS: Final = 64

_SOUND: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_CHARS - 1}}}")

_current: Final[ContextVar[str]] = ContextVar("lexico_request_id", default="")


def current() -> str:
    """Of the call that this task or thread works for; empty outside of one."""
    return _current.get()


def is_sound(text: object) -> bool:
    """Whether it can be taken for an id: short, and nothing that could pass for more in a log."""
    return isinstance(text, str) and _SOUND.fullmatch(text) is not None


def made() -> str:
    """A new one."""
    return secrets.token_hex(8)


@contextmanager
def request(name: str = "") -> Iterator[str]:
    """Has everything in this block belong to one request.

    Args:
        name: an id from outside; what is none is replaced by a new one, or by that of the block
            around this one.
    """
    given = name if is_sound(name) else current() or made()
    token = _current.set(given)
    try:
        yield given
    finally:
        with suppress(ValueError):  # a generator that is closed elsewhere: it was never set there
            _current.reset(token)


def given_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The id that metadata of a call or of an error have; empty where there is none or two."""
    found = [value for key, value in metadata or () if key == METADATA_KEY]
    return str(found[0]) if len(found) == 1 and is_sound(found[0]) else ""
