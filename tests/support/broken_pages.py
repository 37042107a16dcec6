"""Pages as no commit leaves them, in a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Break = Callable[[Any, str], Any]
"""Does something to the page of this name, by a plain redis-py client."""


def _as_another_kind(raw: Any, name: str, store: Callable[[], Any]) -> None:
    raw.delete(name)
    store()
    raw.expire(name, 3600)


BREAKS: Final[dict[str, Break]] = {
    "first frame missing": lambda raw, name: raw.hdel(name, "g0"),
    "frame in the middle missing": lambda raw, name: raw.hdel(name, "g1"),
    "last frame missing": lambda raw, name: raw.hdel(name, "g2"),
    "all frames missing": lambda raw, name: raw.hdel(name, "g0", "g1", "g2"),
    "first frame empty": lambda raw, name: raw.hset(name, "g0", b""),
    "last frame empty": lambda raw, name: raw.hset(name, "g2", b""),
    "frame too many": lambda raw, name: raw.hset(name, "g3", b"x"),
    "number of frames is none": lambda raw, name: raw.hset(name, "m", b"\xff"),
    "a string": lambda raw, name: raw.set(name, b"x", ex=3600),
    "a list": lambda raw, name: _as_another_kind(raw, name, lambda: raw.rpush(name, b"x")),
    "a sorted set": lambda raw, name: _as_another_kind(
        raw, name, lambda: raw.zadd(name, {b"x": 1.0})
    ),
}
"""What is done to a page of three frames → how."""
