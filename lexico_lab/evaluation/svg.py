"""Plots as inline SVG: lines over two axes, and bars over one. Colours are the page's (`html`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Final

COLOURS: Final = 12
"""Of the page's style sheet, `--c0` to `--c11`; more series repeat them with other marks."""

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 16, 14, 48
_DECADES: Final = 5  # what lies further below the largest is drawn at the edge
_MARKS: Final = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Point:
    """A mark, with the interval of its y where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    """Shown when the pointer rests on it."""
    on_line: bool = True
    """Whether the line of its series goes through it."""


@dataclass(frozen=True)
class Series:
    """Points of one name."""

    name: str
    points: Sequence[Point]
    colour: int
    """Decides on the mark too, so that a name looks alike in all plots."""
    strong: bool = True
    """Drawn thick, over the others."""
    dashed: bool = False
    """Belongs to the strong one of the same colour, and has its mark."""


@dataclass(frozen=True)
class Axis:
    """One direction of a plot."""

    label: str
    log: bool = False
    from_zero: bool = False
    whole: bool = False
    """Ticks at whole numbers alone."""
    up_to: float | None = None
    """A value that is on it in any case."""
    ends: tuple[float, float] = field(default=(0.0, 1.0))
    """Set by `fitted`."""

    def fitted(self, values: Iterable[float]) -> Axis:
        """With ends that hold the values, and room beside them."""
        known = [value for value in values if math.isfinite(value)]
        known += [] if self.up_to is None else [self.up_to]
        if self.log:
            positive = [value for value in known if value > 0] or [1.0]
            high = max(positive)
            low = max(min(positive), high / 10**_DECADES)
            room = max(1.15, (high / low) ** 0.05)
            return replace(self, ends=(low / room, high * room))
        low, high = min(known, default=0.0), max(known, default=1.0)
        if self.from_zero:
            low = min(0.0, low)
        room = 0.05 * (high - low) or 0.5
        least = low if self.from_zero and low == 0 else low - room
        return replace(self, ends=(least, high + room))

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1; beyond the ends at the edge."""
        low, high = self.ends
        if self.log:
            if value <= 0:
                return 0.0
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        low, high = self.ends
        if not self.log:
            step = _round_step((high - low) / 6)
            step = float(math.ceil(step)) if self.whole else step
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            return [index * step for index in range(first, last + 1)]
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
        every = [factor * 10.0**decade for decade in decades for factor in factors]
        return [value for value in every if low <= value <= high]


def plot(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Lines with marks, whiskers where there are intervals, and a legend."""
    points = [point for one in series for point in one.points]
    x = x.fitted(point.x for point in points)
    ends = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
    y = y.fitted(ends)
    parts = [_frame(x, y)]
    for one in sorted(series, key=lambda one: one.strong):
        marks = [(_x(x, point.x), _y(y, point.y), point) for point in one.points]
        corners = [(px, py) for px, py, point in marks if point.on_line]
        if len(corners) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
            dash = ' stroke-dasharray="5 4"' if one.dashed else ""
            parts.append(
                f'<polyline class="line" style="{_colour(one.colour)}" '
                f'stroke-width="{_width(one)}"{dash} points="{path}"></polyline>'
            )
        for px, py, point in marks:
            parts.append(_whisker(px, y, point, one.colour))
            parts.append(_mark(px, py, point, one))
    legend = "".join(f"<li>{_key(one)}{escape(one.name)}</li>" for one in series)
    return _figure(title, _WIDTH, _HEIGHT, "".join(parts), legend)


def bars(
    title: str,
    names: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    axis: Axis,
    strong: Sequence[bool] | None = None,
) -> str:
    """Horizontal bars, a group a row; dots on a logarithmic axis.

    Args:
        title: of the plot.
        names: of the bars in every group.
        rows: label and values of each group; None is left out.
        axis: of the values.
        strong: which groups are this project's.
    """
    axis = axis.fitted(value for _, values in rows for value in values if value is not None)
    left, height, gap = 210, 11, 8
    group = height * len(names) + gap
    bottom = _TOP + group * len(rows)
    span = _WIDTH - left - 70
    parts = []
    for tick in axis.ticks():
        px = left + span * axis.place(tick)
        parts.append(
            f'<line class="grid" x1="{px:.1f}" y1="{_TOP}" x2="{px:.1f}" y2="{bottom}"></line>'
            f'<text x="{px:.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    for index, (label, values) in enumerate(rows):
        top = _TOP + index * group
        middle = top + height * len(names) / 2 + 4
        mark = ' class="ours"' if strong and strong[index] else ""
        parts.append(
            f'<text{mark} x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>'
        )
        for at, value in enumerate(values):
            if value is None:
                continue
            length = max(1.0, span * axis.place(value))
            py = top + at * height
            shown = f"<title>{escape(label)}, {escape(names[at])}: {number(value)}</title>"
            if axis.log:  # a bar would have no zero to start from
                parts.append(
                    f'<line class="grid" x1="{left}" x2="{left + length:.1f}" y1="{py + 4.5}" '
                    f'y2="{py + 4.5}"></line><circle class="mark" style="{_colour(at)}" '
                    f'cx="{left + length:.1f}" cy="{py + 4.5}" r="4">{shown}</circle>'
                )
            else:
                parts.append(
                    f'<rect class="bar" style="{_colour(at)}" x="{left}" y="{py}" '
                    f'height="{height - 2}" width="{length:.1f}">{shown}</rect>'
                )
            parts.append(
                f'<text class="small" x="{left + length + 7:.1f}" y="{py + height - 3}">'
                f"{number(value)}</text>"
            )
    parts.append(
        f'<text x="{left + span / 2:.0f}" y="{bottom + 36}" text-anchor="middle">'
        f"{escape(axis.label)}</text>"
    )
    legend = "".join(
        f'<li><span class="key" style="{_colour(at)}"></span>{escape(name)}</li>'
        for at, name in enumerate(names)
    )
    return _figure(title, _WIDTH, bottom + 46, "".join(parts), legend if len(names) > 1 else "")


def number(value: float | None) -> str:
    """A number as the report shows it: three digits that count."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        text = f"{value:.1e}"
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _figure(title: str, width: int, height: float, content: str, legend: str) -> str:
    keys = f'<ul class="legend">{legend}</ul>' if legend else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{content}</svg>{keys}</figure>"
    )


def _frame(x: Axis, y: Axis) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in x.ticks():
        px = _x(x, tick)
        parts.append(
            f'<line class="grid" x1="{px:.1f}" y1="{_TOP}" x2="{px:.1f}" y2="{bottom}"></line>'
            f'<text x="{px:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
        )
    for tick in y.ticks():
        py = _y(y, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{py:.1f}" x2="{right}" y2="{py:.1f}"></line>'
            f'<text x="{_LEFT - 7}" y="{py + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<path class="axis" d="M{_LEFT},{_TOP} V{bottom} H{right}"></path>'
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return "".join(parts)


def _whisker(px: float, y: Axis, point: Point, colour: int) -> str:
    if point.low is None or point.high is None:
        return ""
    low, high = _y(y, point.low), _y(y, point.high)
    if abs(high - low) < 1:
        return ""
    return (
        f'<line class="whisker" style="{_colour(colour)}" x1="{px:.1f}" y1="{low:.1f}" '
        f'x2="{px:.1f}" y2="{high:.1f}"></line>'
    )


def _key(one: Series) -> str:
    """A line and a mark for the legend."""
    dash = ' stroke-dasharray="5 4"' if one.dashed else ""
    line = (
        f'<line class="line" style="{_colour(one.colour)}" stroke-width="{_width(one)}"{dash} '
        'x1="0" y1="6" x2="26" y2="6"></line>'
    )
    return f'<svg class="key" viewBox="0 0 26 12">{line}{_mark(13, 6, Point(0, 0), one)}</svg>'


def _width(one: Series) -> float:
    return 2.2 if one.strong else 1.1


def _mark(px: float, py: float, point: Point, one: Series) -> str:
    size = 4.2 if one.strong else 3.0
    repeats = one.colour // COLOURS  # of the colour, which then has another mark
    ours = one.strong or one.dashed
    kind = _MARKS[(repeats if ours else one.colour + repeats) % len(_MARKS)]
    style = f'class="mark" style="{_colour(one.colour)}"'
    title = f"<title>{escape(point.title or one.name)}</title>"
    if kind == "circle":
        return f'<circle {style} cx="{px:.1f}" cy="{py:.1f}" r="{size}">{title}</circle>'
    shape = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.2), (1.2, 1), (-1.2, 1)),
    }[kind]
    corners = " ".join(f"{px + size * dx:.1f},{py + size * dy:.1f}" for dx, dy in shape)
    return f'<polygon {style} points="{corners}">{title}</polygon>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + (_WIDTH - _RIGHT - _LEFT) * axis.place(value)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * axis.place(value)


def _colour(index: int) -> str:
    return f"--c:var(--c{index % COLOURS})"


def _round_step(about: float) -> float:
    scale = 10.0 ** math.floor(math.log10(about))
    return next(f * scale for f in (1, 2, 2.5, 5, 10) if f * scale >= about * (1 - 1e-9))
