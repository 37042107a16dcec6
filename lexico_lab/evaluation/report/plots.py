"""The kinds of plot that a report has: lines over two axes, and bars over one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lexico_lab.evaluation.report import palette
from lexico_lab.evaluation.report.drawing import FONT_SIZE, SMALL, canvas, styled, svg_of
from lexico_lab.evaluation.report.numbers import number

_WIDTH, _HEIGHT = 720, 400
_CHARACTER: Final = 0.55 * FONT_SIZE
_KEY_WIDTH: Final = 60
_LINE_HEIGHT: Final = 1.65 * FONT_SIZE
_BAR, _GAP = 11, 8
_DECADES: Final = 5  # what lies further below the largest is drawn at the edge
_FEW_DECADES: Final = 2.5  # which have room for ticks at 2 and 5
_MARKS: Final = ("o", "s", "D", "^")


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
    number: int
    """Decides on colour and mark, so that a name looks alike in all plots."""
    strong: bool = True
    """Drawn thick, over the others."""
    dashed: bool = False
    """Belongs to the strong one of the same number, and has its mark."""

    @property
    def colour(self) -> str:
        """After the last the first comes again, with another mark."""
        return palette.SERIES[self.number % len(palette.SERIES)]

    @property
    def mark(self) -> str:
        """A marker of matplotlib."""
        repeats = self.number // len(palette.SERIES)
        ours = self.strong or self.dashed
        return _MARKS[(repeats if ours else self.number + repeats) % len(_MARKS)]

    @property
    def look(self) -> dict[str, Any]:
        """Of its marks and its line, as matplotlib takes it."""
        return {
            "color": self.colour,
            "linewidth": 2.2 if self.strong else 1.1,
            "marker": self.mark,
            "markersize": 8.4 if self.strong else 6,
            "markeredgewidth": 0,
            "dashes": (5, 4) if self.dashed else (),
        }


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

    def ends(self, values: Iterable[float]) -> tuple[float, float]:
        """That hold the values, with room beside them."""
        known = [value for value in values if math.isfinite(value)]
        known += [] if self.up_to is None else [self.up_to]
        if self.log:
            positive = [value for value in known if value > 0] or [1.0]
            high = max(positive)
            low = max(min(positive), high / 10**_DECADES)
            room = max(1.15, (high / low) ** 0.05)
            return low / room, high * room
        low, high = min(known, default=0.0), max(known, default=1.0)
        if self.from_zero:
            low = min(0.0, low)
        room = 0.05 * (high - low) or 0.5
        return (low if self.from_zero and low == 0 else low - room), high + room

    def fit(self, axes: Axes, side: str, values: Iterable[float]) -> tuple[float, float]:
        """Sets up one side of a plot, `x` or `y`; gives its ends."""
        low, high = self.ends(values)
        axes.set(
            **{
                f"{side}label": self.label,
                f"{side}scale": "log" if self.log else "linear",
                f"{side}lim": (low, high),
            }
        )
        axis = axes.xaxis if side == "x" else axes.yaxis
        if self.log:
            few = math.log10(high / low) < _FEW_DECADES
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=50))
        else:
            steps = (1, 2, 2.5, 5, 10)
            axis.set_major_locator(MaxNLocator(7, steps=steps, integer=self.whole))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        return low, high


def lines(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """SVG: lines with marks, whiskers where there are intervals, and a legend below."""
    points = [point for one in series for point in one.points]
    columns = _columns(one.name for one in series)
    legend = _LINE_HEIGHT * math.ceil(len(series) / columns)
    told = {}
    with styled():
        figure = canvas(_WIDTH, _HEIGHT + legend)
        axes = figure.subplots()
        x.fit(axes, "x", (point.x for point in points))
        found = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
        lowest, _ = y.fit(axes, "y", found)
        for at, one in enumerate(sorted(series, key=lambda one: one.strong)):
            _draw(axes, one, lowest, f"marks-{at}")
            told[f"marks-{at}"] = [point.title or one.name for point in one.points]
        keys = [Line2D([], [], **one.look) for one in series]
        names = [one.name for one in series]
        figure.legend(keys, names, loc="outside lower left", ncols=columns)
        return svg_of(figure, title, told)


def bars(
    title: str,
    names: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    axis: Axis,
    strong: Sequence[bool] | None = None,
) -> str:
    """SVG: horizontal bars, a group a row; dots on a logarithmic axis.

    Args:
        title: of the plot.
        names: of the bars in every group.
        rows: label and values of each group; None is left out.
        axis: of the values.
        strong: which groups are this project's.
    """
    group = _BAR * len(names) + _GAP
    told = {}
    with styled():
        figure = canvas(_WIDTH, group * len(rows) + 60 + _LINE_HEIGHT * (len(names) > 1))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        low, _ = axis.fit(axes, "x", (v for _, values in rows for v in values if v is not None))
        axes.set_ylim(group * len(rows), -_GAP / 2)
        middles = [group * row + _BAR * len(names) / 2 for row in range(len(rows))]
        labels = axes.set_yticks(middles, [label for label, _ in rows])
        for tick, ours in zip(labels, strong or (), strict=strong is not None):
            tick.label1.set_fontweight("bold" if ours else "normal")
        for row, (label, values) in enumerate(rows):
            for at, value in enumerate(values):
                if value is None:
                    continue
                place, gid = group * row + _BAR * (at + 0.5), f"bar-{row}-{at}"
                shown = max(value, low)
                _bar(axes, axis, shown, place, palette.SERIES[at], gid)
                axes.annotate(
                    number(value),
                    (shown, place),
                    (7, 0),
                    textcoords="offset points",
                    fontsize=SMALL,
                    color=palette.DIM,
                    verticalalignment="center",
                )
                told[gid] = [f"{label}, {names[at]}: {number(value)}"]
        if len(names) > 1:
            mark = "o" if axis.log else "s"
            keys = [
                Line2D([], [], color=palette.SERIES[at], marker=mark, linestyle="", markersize=8)
                for at in range(len(names))
            ]
            figure.legend(keys, names, loc="outside lower left", ncols=len(names))
        return svg_of(figure, title, told)


def _draw(axes: Axes, one: Series, lowest: float, gid: str) -> None:
    """Line, whiskers and marks; what lies below the axis is drawn at its edge."""
    look = one.look | {"marker": ""}
    on_line = [point for point in one.points if point.on_line]
    axes.plot([p.x for p in on_line], [max(p.y, lowest) for p in on_line], **look)
    whiskers = [
        (p.x, max(p.low, lowest), max(p.high, lowest))
        for p in one.points
        if p.low is not None and p.high is not None
    ]
    if whiskers:
        places, lows, highs = zip(*whiskers, strict=True)
        axes.vlines(places, lows, highs, colors=one.colour, linewidth=1, alpha=0.6)
    xs, ys = [p.x for p in one.points], [max(p.y, lowest) for p in one.points]
    axes.plot(xs, ys, **one.look | {"linestyle": "", "gid": gid, "clip_on": False})


def _bar(axes: Axes, axis: Axis, value: float, place: float, colour: str, gid: str) -> None:
    if axis.log:  # a bar would have no zero to start from
        axes.hlines(place, axes.get_xlim()[0], value, colors=palette.GRID, linewidth=1)
        dot = Line2D([value], [place], color=colour, linestyle="", gid=gid)
        dot.set(marker="o", markersize=8, markeredgewidth=0)
        axes.add_line(dot)
    else:
        axes.barh([place], [value], _BAR - 2, color=colour)[0].set_gid(gid)


def _columns(names: Iterable[str]) -> int:
    """That a legend has room for."""
    widest = max((len(name) for name in names), default=0)
    return max(1, int(_WIDTH // (_CHARACTER * widest + _KEY_WIDTH)))
