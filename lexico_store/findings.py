"""What one look at a store finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    REFUSED = "refused"
    """It cannot work."""
    WARNING = "warning"
    """It works, and will fail or disappoint."""
    NOTE = "note"
    """What an operator may want to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the store, and what to do. Neither text holds a secret."""

    level: Level
    what: str
    to_do: str
    """A sentence in the imperative, or empty."""

    def __str__(self) -> str:
        return f"{self.what}: {self.to_do}" if self.to_do else self.what
