"""Checks of a caller's arguments, the same for every backend. Each raises InvalidInput."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from lexico_proto.errors import InvalidInput
from lexico_proto.limits import DIGEST_BYTES, MAX_FRAME_BYTES, MAX_GROUPS, MAX_SECONDS
from lexico_store import keys as keyspace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    BytesLike = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
    FrameLike = BytesLike | tuple[BytesLike, ...]

Parts = tuple[memoryview, ...]
"""One run of bytes in several buffers, none of them empty."""

MAX_DIGEST_BYTES: Final = 64
"""Longest scope and longest dictionary digest: what BLAKE2b takes as a key."""
MAX_TTL_S: Final = MAX_SECONDS
"""Far below where a server's expiry in milliseconds overflows."""


def check_scope(scope: bytes) -> None:
    """A tenant's scope is 1..64 bytes."""
    if not isinstance(scope, bytes) or not 1 <= len(scope) <= MAX_DIGEST_BYTES:
        raise InvalidInput(f"scope must be 1..{MAX_DIGEST_BYTES} bytes: {_shape(scope)}")


def check_key(key: bytes) -> None:
    """A page key is 32 bytes."""
    if not isinstance(key, bytes) or len(key) != DIGEST_BYTES:
        raise InvalidInput(f"page key must be {DIGEST_BYTES} bytes: {_shape(key)}")


def page_names(scope: bytes, keys: Iterable[bytes]) -> list[str]:
    """Names of a tenant's pages."""
    check_scope(scope)
    names = []
    for key in keys:
        check_key(key)
        names.append(keyspace.page(scope, key))
    return names


def check_digest(digest: bytes) -> None:
    """A dictionary digest is 1..64 bytes."""
    if not isinstance(digest, bytes) or not 1 <= len(digest) <= MAX_DIGEST_BYTES:
        raise InvalidInput(
            f"dictionary digest must be 1..{MAX_DIGEST_BYTES} bytes: {_shape(digest)}"
        )


def check_groups(groups: Iterable[int]) -> None:
    """Layer groups' indices are below `MAX_GROUPS`."""
    for group in groups:
        if not 0 <= group < MAX_GROUPS:
            raise InvalidInput(f"group {group} is not in 0..{MAX_GROUPS - 1}")


def checked_ttl_ms(ttl_s: float) -> int:
    """Time to live in whole milliseconds, at least 1."""
    if not (math.isfinite(ttl_s) and 0 < ttl_s <= MAX_TTL_S):
        raise InvalidInput(f"ttl_s is {ttl_s}: give seconds in (0, {MAX_TTL_S:.0f}]")
    return max(1, round(ttl_s * 1000))


def checked_frames(frames: Sequence[FrameLike]) -> list[Parts]:
    """Views of the frames, as unsigned bytes and without a copy."""
    if not 1 <= len(frames) <= MAX_GROUPS:
        raise InvalidInput(f"a page has 1..{MAX_GROUPS} frames, not {len(frames)}")
    return [_checked_parts(frame, f"frame {i}") for i, frame in enumerate(frames)]


def _checked_parts(frame: FrameLike, what: str) -> Parts:
    parts = frame if isinstance(frame, tuple) else (frame,)
    views = tuple(checked_view(part, what, MAX_FRAME_BYTES) for part in parts)
    size = sum(view.nbytes for view in views)
    if not 1 <= size <= MAX_FRAME_BYTES:
        raise InvalidInput(f"{what} has {size} bytes, not 1..{MAX_FRAME_BYTES}")
    return views


def checked_view(data: BytesLike, what: str, most: int) -> memoryview:
    """`data` as a flat view of 1..`most` unsigned bytes, without a copy."""
    try:
        buffer: Any = data  # numpy's arrays are buffers, but say so to type checkers from 3.12 on
        view = memoryview(buffer).cast("B")
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidInput(
            f"{what} is not a contiguous buffer of bytes: {type(data).__name__}"
        ) from error
    if not 1 <= view.nbytes <= most:
        raise InvalidInput(f"{what} has {view.nbytes} bytes, not 1..{most}")
    return view


def _shape(value: object) -> str:
    """Type and length of a value, never its content."""
    size = f" of {len(value)}" if isinstance(value, bytes | bytearray | str) else ""
    return f"got {type(value).__name__}{size}"
