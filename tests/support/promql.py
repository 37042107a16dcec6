"""As much of PromQL as tells which series an expression looks at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_SELECTOR: Final = re.compile(
    rf"\b(?P<name>(?:certmanager|kube|lexico|process)_\w+)(?:\{{(?P<matchers>(?:{_STRING}|[^}}\"])*)\}})?"
)
_MATCHER: Final = re.compile(rf"(?P<label>\w+)\s*(?P<kind>=~|!~|!=|=)\s*(?P<value>{_STRING})")
_GROUPS: Final = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Matcher:
    """Of one label."""

    label: str
    kind: str
    """`=`, `!=`, `=~` or `!~`."""
    value: str


@dataclass(frozen=True)
class Selector:
    """Series that an expression looks at."""

    text: str
    name: str
    matchers: tuple[Matcher, ...]


def selectors(expr: str) -> list[Selector]:
    """Of metrics of ours, of processes, and of what watches pods."""
    found = []
    for match in _SELECTOR.finditer(expr):
        matchers = tuple(
            Matcher(each["label"], each["kind"], each["value"][1:-1])
            for each in _MATCHER.finditer(match["matchers"] or "")
        )
        found.append(Selector(match[0], match["name"], matchers))
    return found


def grouped_by(expr: str) -> set[str]:
    """Labels that it groups or joins by."""
    return {
        label.strip() for group in _GROUPS.findall(expr) for label in group.split(",") if label
    } - {""}
