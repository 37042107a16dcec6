"""What the field of a namespace holds in its tenant's record (`keys.namespaces`): a line for
people, and a description for programs.

It comes and goes with the notes of the namespace's pages. What a description says is the codec's
business, not the store's.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Described:
    """A namespace that pages were stored of."""

    namespace: bytes
    description: bytes
    """What it is made of, as `PageEncoder` wrote it."""
    began_us: int
    """When the upload began that stored the newest of its pages, in microseconds since 1970."""


def packed(about: str, description: bytes, began_us: int) -> bytes:
    """The value of a namespace's field: a line for people, then one for programs, if there is
    something to say. Releases of before write the first one alone, and show both to people."""
    line = about.replace("\n", " ").encode()
    if not description:
        return line
    rest = {"began_us": began_us, "spec": base64.b64encode(description).decode()}
    return line + b"\n" + json.dumps(rest).encode()


def about_of(value: bytes) -> str:
    """The line for people."""
    return value.partition(b"\n")[0].decode(errors="replace")


def unpacked(namespace: bytes, value: bytes) -> Described | None:
    """The description in a value; None where there is none that can be read."""
    try:
        rest = json.loads(value.partition(b"\n")[2])
        description = base64.b64decode(rest["spec"], validate=True)
        return Described(namespace, description, int(rest["began_us"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
