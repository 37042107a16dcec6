"""What a caller may do. Roles do not include each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

OFFLOAD: Final = "offload"
"""Sends pages (Put) and dictionary sets (Register)."""
RELOAD: Final = "reload"
"""Reads pages (Get)."""
ADMIN: Final = "admin"
"""What an operator does for a tenant."""

ROLES: Final = frozenset({OFFLOAD, RELOAD, ADMIN})
USUAL: Final = frozenset({OFFLOAD, RELOAD})
"""What a caller may do where nothing else is said. Match, Fetch and List take either of them."""


def read_roles(words: Iterable[str]) -> frozenset[str] | None:
    """The roles that the words name; None where there is no word, or one that names none."""
    found = frozenset(words)
    return found if found and found <= ROLES else None
