"""The trace that a caller is in: W3C Trace Context out of a call's metadata.

https://www.w3.org/TR/trace-context/. A caller writes it, so it is checked, bounded and never
logged. `lexico_proto.tracing` makes spans of it.
"""

from __future__ import annotations

import re
from typing import Final

from lexico_proto.tracing import Trace
from lexico_services.caller import Metadata

MAX_TRACEPARENT_CHARS: Final = 128
"""Version 00 has 55; later ones may append fields."""
MAX_TRACESTATE_CHARS: Final = 512
MAX_TRACESTATE_MEMBERS: Final = 32

_PARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-[0-9a-f]{2}"
    r"(?P<more>-[!-~]*)?"
)
_KEY: Final = r"[a-z0-9][a-z0-9_*/-]{0,255}(@[a-z][a-z0-9_*/-]{0,13})?"
_MEMBER: Final = re.compile(rf"[ \t]*({_KEY}=[ -+\--<>-~]{{0,255}}[!-+\--<>-~][ \t]*)?")


def trace_of(metadata: Metadata) -> Trace:
    """The caller's `traceparent`, and its `tracestate` where that is sound too; else nothing.

    Args:
        metadata: of the call, not trusted.
    """
    found: dict[str, list[str | bytes]] = {"traceparent": [], "tracestate": []}
    for key, value in metadata or ():
        if key in found:
            found[key].append(value)
    parents, states = found["traceparent"], found["tracestate"]
    if len(parents) != 1 or not isinstance(parents[0], str) or not _is_parent(parents[0]):
        return ()
    texts = [state for state in states if isinstance(state, str)]
    state = ",".join(texts)  # several headers are one list
    if not state or len(texts) != len(states) or not _is_state(state):
        return (("traceparent", parents[0]),)
    return ("traceparent", parents[0]), ("tracestate", state)


def _is_parent(text: str) -> bool:
    if len(text) > MAX_TRACEPARENT_CHARS or not (match := _PARENT.fullmatch(text)):
        return False
    if match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return False
    return match["trace"].strip("0") != "" and match["parent"].strip("0") != ""


def _is_state(text: str) -> bool:
    if len(text) > MAX_TRACESTATE_CHARS:
        return False
    members = text.split(",")
    return len(members) <= MAX_TRACESTATE_MEMBERS and all(map(_MEMBER.fullmatch, members))
