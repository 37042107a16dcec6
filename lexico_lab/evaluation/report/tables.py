"""Tables of a report: rows of cells that the template lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lexico_lab.evaluation.report.numbers import number


@dataclass(frozen=True)
class Cell:
    """One cell."""

    shown: str
    kind: str = ""
    """Class of the style sheet: text, wrap (text that may be long), best, or none for a number."""
    interval: str = ""
    """Ends of the number's interval."""


@dataclass(frozen=True)
class Table:
    """Heads, and rows of as many cells."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: Sequence[bool] = ()
    """Which rows are this project's; none where nothing is told apart."""
    caption: str = ""
    """A paragraph before it."""
    summary: str = ""
    """Where there is one, the table is folded behind it."""


def text(content: object) -> Cell:
    """A cell of text."""
    return Cell(str(content), "text")


def wide(content: object) -> Cell:
    """A cell of text that may be long."""
    return Cell(str(content), "wrap")


def value(found: float | None, scale: float = 1, best: bool = False) -> Cell:
    """A cell of a number; None where it was not measured."""
    return Cell(number(None if found is None else scale * found), "best" if best else "")


def ranged(found: Mapping[str, Any] | None, scale: float = 1) -> Cell:
    """A cell of a mean and its interval; None where it was not measured."""
    if found is None:
        return value(None)
    mean = number(scale * found["mean"])
    if found["low"] is None:
        return Cell(mean)
    low, high = (number(scale * found[end]) for end in ("low", "high"))
    return Cell(mean, interval=f"[{low}, {high}]")
