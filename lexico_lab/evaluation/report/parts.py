"""What a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lexico_lab.evaluation.report.tables import Table


@dataclass(frozen=True)
class Drawing:
    """A plot."""

    caption: str
    svg: Markup


@dataclass(frozen=True)
class Part:
    """Plots, and tables of the numbers under them."""

    heading: str = ""
    notes: Sequence[str] = ()
    """Paragraphs before the rest."""
    command: str = ""
    """Shown as it was typed."""
    plots: Sequence[Drawing] = ()
    """Side by side where there is room."""
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """What the head of the page links to."""

    anchor: str
    title: str
    parts: Sequence[Part]
    heading: str = ""
    """Where it says more than the link."""


def drawing(caption: str, svg: str) -> Drawing:
    """A plot from `plots`, which escapes what it writes."""
    return Drawing(caption, Markup(svg))
