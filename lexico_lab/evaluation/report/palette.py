"""Colours of plots, which are drawn for light pages and recoloured by the style sheet on dark ones.

matplotlib writes plain colours into the `style` of each element. A rule of CSS that matches them
there leaves the drawing right for viewers that know neither CSS variables nor media queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

GROUND: Final = "#ffffff"
TEXT: Final = "#1d2125"
DIM: Final = "#5c6670"
GRID: Final = "#d9dee3"
OURS: Final = "#1257b8"
SERIES: Final = (
    *("#1f6fd6", "#d3541b", "#17884f", "#9140c9", "#a8780a", "#c4296c"),
    *("#0c8b97", "#7a5a3c", "#6272d9", "#5f8a14", "#b03a3a", "#707982"),
)

_DARK: Final = {
    GROUND: "#14181c",
    TEXT: "#e6eaee",
    DIM: "#9aa5b0",
    GRID: "#333b43",
    OURS: "#7db4ff",
    **dict(
        zip(
            SERIES,
            (
                *("#6aa9ff", "#ff8f5a", "#4fcb8d", "#c894f7", "#e0b84a", "#ff7fb2"),
                *("#4dd0dc", "#c9a27c", "#a3aeff", "#a9d65a", "#f08080", "#aab4be"),
            ),
            strict=True,
        )
    ),
}
"""Light colour → dark one."""


def dark_rules(colours: Iterable[str] = _DARK) -> str:
    """CSS that recolours drawings where the reader prefers a dark page."""
    rules = (
        f'svg [style*="{part}: {light}"]{{{part}:{_DARK[light]}!important}}'
        for light in colours
        for part in ("fill", "stroke")
    )
    return f"@media(prefers-color-scheme:dark){{{''.join(rules)}}}"
