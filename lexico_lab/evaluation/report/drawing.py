"""From a figure of matplotlib to an SVG that belongs into a page.

Equal figures give equal bytes, so that committed drawings can be compared: ids are hashes with a
fixed salt, no date is written, and text stays text, measured with the font that matplotlib brings.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from lexico_lab.evaluation.report import palette

POINTS_AN_INCH: Final = 72
"""Units of the SVG: lengths below are in them, as in CSS."""
FONT_SIZE: Final = 12
SMALL: Final = 10

_FONT: Final = "DejaVu Sans"
"""Wider than what readers have, so that nothing overlaps that did not before."""
_SHOWN_FONT: Final = "system-ui, sans-serif"
_NAMESPACE: Final = "http://www.w3.org/2000/svg"
_SVG: Final = f"{{{_NAMESPACE}}}"
_XLINK_HREF: Final = "{http://www.w3.org/1999/xlink}href"  # of SVG 1.1; `href` since
_USED: Final = re.compile(r"#([\w-]+)")
_LONG: Final = re.compile(r"-?\d+\.\d{3,}")
_STYLE: Final[Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": palette.DIM,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": palette.TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_SIZE,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.08,
    "font.family": _FONT,
    "font.size": FONT_SIZE,
    "grid.color": palette.GRID,
    "grid.linewidth": 1,
    "legend.borderaxespad": 0,
    "legend.frameon": False,
    "lines.scale_dashes": False,
    "lines.solid_joinstyle": "round",
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",
    "text.color": palette.TEXT,
    "text.parse_math": False,
    "xtick.color": palette.GRID,
    "xtick.labelcolor": palette.TEXT,
    "ytick.color": palette.GRID,
    "ytick.labelcolor": palette.TEXT,
    **{f"{axis}tick.{which}.size": 0 for axis in "xy" for which in ("major", "minor")},
}


def styled() -> Any:
    """A context in which figures are made and drawn in the style of the project, whatever the
    user's own is."""
    return rc_context(_STYLE)


def canvas(width: float, height: float) -> Figure:
    """An empty figure, whose parts make room for one another."""
    return Figure((width / POINTS_AN_INCH, height / POINTS_AN_INCH), layout="constrained")


def svg_of(figure: Figure, title: str, told: Mapping[str, Sequence[str]], style: str = "") -> str:
    """The SVG of a figure.

    Args:
        figure: made inside `styled`, where this is to be called too.
        title: what it shows; ids differ between drawings of different titles.
        told: by the `gid` of an artist what is shown where the pointer rests on it: one text for
            the whole, or one for each of its marks.
        style: style sheet, for an SVG that stands alone.
    """
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", _NAMESPACE)
    root = ElementTree.fromstring(stream.getvalue())
    _strip(root)
    for group in root.iter(f"{_SVG}g"):
        texts = told.get(group.get("id", ""))
        if texts:
            marks = [*group.iter(f"{_SVG}use")]
            for mark, text in zip(marks or [group], texts, strict=True):
                _tell(mark, text)
    _forget_ids(root)
    root.set("role", "img")
    root.set("aria-label", title)
    if style:
        sheet = ElementTree.Element(f"{_SVG}style")
        sheet.text = style
        root.insert(0, sheet)
        _tell(root, title)
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(f"'{_FONT}'", _SHOWN_FONT)


def _strip(root: ElementTree.Element) -> None:
    """Takes off what would reach beyond the drawing, its fixed size, and digits that nobody sees:
    the last ones may also differ between processors."""
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for element in root.iter():
        for name, value in element.attrib.items():
            element.set(name, _LONG.sub(lambda found: f"{float(found[0]):.2f}", value))
        if _XLINK_HREF in element.attrib:
            element.set("href", element.attrib.pop(_XLINK_HREF))
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")


def _tell(element: ElementTree.Element, text: str) -> None:
    title = ElementTree.Element(f"{_SVG}title")
    title.text = text
    element.insert(0, title)


def _forget_ids(root: ElementTree.Element) -> None:
    """Ids that nothing refers to are alike in all drawings, and a page is to have each once."""
    used = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in _USED.findall(value)
    }
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
