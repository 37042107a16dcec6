"""Texts of somebody else's, as they are shown."""

from __future__ import annotations


def one_line(text: object) -> str:
    """A text as one line: what an error of another library says, or a name that a user gave."""
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """A text of somebody else's as a line that a terminal only shows."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
