"""Tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lexico_lab.evaluation.svg import number


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[bool] | None = None
) -> str:
    """A table of cells that are HTML already.

    Args:
        head: plain text.
        rows: cells made by `text`, `value` and `wide`.
        strong: which rows are this project's.
    """
    marks = [' class="ours"' if mark else "" for mark in strong or [False] * len(rows)]
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr{mark}>{''.join(row)}</tr>" for row, mark in zip(rows, marks, strict=True))
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def text(content: object) -> str:
    """A cell of text."""
    return f'<td class="text">{escape(str(content))}</td>'


def wide(content: object) -> str:
    """A cell of text that may be long."""
    return f'<td class="wrap">{escape(str(content))}</td>'


def value(found: float | None, scale: float = 1, best: bool = False) -> str:
    """A cell of a number."""
    mark = ' class="best"' if best else ""
    return f"<td{mark}>{number(None if found is None else scale * found)}</td>"


def ranged(found: Mapping[str, Any] | None, scale: float = 1) -> str:
    """A cell of a mean and its interval; None where it was not measured."""
    if found is None:
        return value(None)
    mean = number(scale * found["mean"])
    if found["low"] is None:
        return f"<td>{mean}</td>"
    low, high = (number(scale * found[end]) for end in ("low", "high"))
    return f'<td>{mean} <span class="ci">[{low}, {high}]</span></td>'


def folded(summary: str, content: str) -> str:
    """Content that is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
