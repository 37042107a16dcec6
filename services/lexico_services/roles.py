"""What a caller may do. Roles do not include each other."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

OFFLOAD: Final = "offload"
"""Sends pages (Put) and dictionary sets (Register)."""
RELOAD: Final = "reload"
"""Reads pages (Get)."""
ADMIN: Final = "admin"
"""What is done for a tenant: its pages counted, pinned, forgotten."""
OPERATOR: Final = "operator"
"""Sees the numbers of whole processes, and of all tenants."""

ROLES: Final = frozenset({OFFLOAD, RELOAD, ADMIN, OPERATOR})
USUAL: Final = frozenset({OFFLOAD, RELOAD})
"""What a caller may do where nothing else is said. Match, Fetch and List take either of them."""

_NEARLY: Final = 0.7
"""Part of two words that is the same, from which on one is taken for a slip of the other."""


def read_roles(words: Iterable[str]) -> frozenset[str] | None:
    """The roles that the words name; None where there is no word, or one that names none."""
    found = frozenset(words)
    return found if found and found <= ROLES else None


def meant_as_roles(words: Iterable[str]) -> bool:
    """Whether one of the words names a role, or nearly, or what one is easily called."""
    likely = (*ROLES, "read", "write")
    return any(get_close_matches(word.lower(), likely, 1, _NEARLY) for word in words)
