"""The plot of docs/quality.md: KL against bytes, a line a method.

A line goes through the settings of a method that none of its own beats in both bytes and KL; dots
are all settings. A setting of KL 0 has no place on the axis and is left out. Of the methods that
evict, alone or with what they keep coded, the best three are drawn, one of them at most before
lexico-residual. The table beside the plot has all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lexico_lab.evaluation.curves import curve
from lexico_lab.evaluation.report import palette
from lexico_lab.evaluation.report.drawing import canvas, styled, svg_of
from lexico_lab.evaluation.report.numbers import number
from lexico_lab.evaluation.report.plots import Axis
from lexico_lab.studies.shown import (
    CODED,
    GROUPS,
    OF_BOTH,
    OF_EVICTIONS,
    SETS,
    Result,
    Shown,
    group_of,
    methods_of,
    sets_of,
)

DRAWN: Final = 3
"""Evictions in the plot: those that get to `DRAWN_KL` with the fewest bytes."""
DRAWN_KL: Final = 0.1

_WIDTH, _PANEL_HEIGHT = 900, 460
_COLUMNS: Final = 4
_ROW: Final = 20
_WIDTHS: Final = (3.4, 1.6, 1.1, 1.1)
"""Of lines, by group."""
_DOTS: Final = (8.4, 5.2, 3.6, 3.6)
_TITLE: Final = "KL against bytes of every method"


def plot_of(result: Result) -> str:
    """SVG: a panel for each of the first two text sets, on equal axes, and a legend."""
    sets = dict(list(sets_of(result).items())[:2])
    left_out = _not_drawn(sets)
    rows = [
        row
        for part in sets.values()
        for row in part["points"]
        if row["kl"] > 0 and row["method"] not in left_out
    ]
    methods = methods_of(row["method"] for row in rows)
    groups = {
        title: [one for one in methods if one.group == group] for group, title in enumerate(GROUPS)
    }
    kept = {title: members for title, members in groups.items() if members}
    heights = [_ROW * (1.6 + math.ceil(len(members) / _COLUMNS)) for members in kept.values()]
    told: dict[str, list[str]] = {}
    with styled():
        figure = canvas(_WIDTH, _PANEL_HEIGHT + sum(heights))
        figure.set_facecolor(palette.GROUND)
        ratios = (_PANEL_HEIGHT, sum(heights))
        [[above], [below]] = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)
        panels = above.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
        x, y = Axis("bytes, % of fp16", log=True), Axis("KL, nats", log=True)
        for panel, (name, part) in zip(panels, sets.items(), strict=True):
            x.fit(panel, "x", (100 * row["fraction"] for row in rows))
            y.fit(panel, "y", (row["kl"] for row in rows))
            panel.set_title(SETS.get(name, name))
            panel.label_outer()
            for one in reversed(methods):  # ours on top
                told |= _draw(panel, one, f"{name} {one.name}", part["points"])
        _legends(below, kept, heights)
        return svg_of(figure, _TITLE, told, palette.dark_rules())


def _draw(
    axes: Axes, method: Shown, gid: str, rows: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Line and dots of a method; what the dots tell."""
    own = [row for row in rows if row["method"] == method.name and row["kl"] > 0]
    best = curve((row["fraction"], row["kl"]) for row in own)
    axes.plot(
        [100 * fraction for fraction, _ in best],
        [kl for _, kl in best],
        color=method.colour,
        linewidth=_WIDTHS[method.group],
        dashes=method.dashes,
    )
    axes.plot(
        [100 * row["fraction"] for row in own],
        [row["kl"] for row in own],
        color=method.colour,
        linestyle="",
        marker="o",
        markersize=_DOTS[method.group],
        markeredgewidth=0,
        gid=gid,
    )
    texts = [
        f"{row['coder']}: {100 * row['fraction']:.1f} %, KL {number(row['kl'])}" for row in own
    ]
    return {gid: texts}


def _legends(
    figure: Figure, groups: Mapping[str, Sequence[Shown]], heights: Sequence[float]
) -> None:
    """A block a kind of method, one below the other."""
    top = sum(heights)
    for (title, members), height in zip(groups.items(), heights, strict=True):
        keys = [
            Line2D([], [], color=one.colour, linewidth=_WIDTHS[one.group], dashes=one.dashes)
            for one in members
        ]
        legend = figure.legend(
            keys,
            [one.title for one in members],
            title=title,
            loc="upper left",
            bbox_to_anchor=(0.07, top / sum(heights)),
            ncols=_COLUMNS,
            alignment="left",
            handlelength=2.8,
        )
        legend.get_title().set_fontweight("bold")
        top -= height


def _not_drawn(sets: Mapping[str, Result]) -> set[str]:
    """Evictions that others leave no place for: by bytes to `DRAWN_KL`, then by their least KL."""
    found: dict[str, tuple[float, float]] = {}
    for part in sets.values():
        for name in {row["method"] for row in part["points"]}:
            if group_of(name) not in (OF_EVICTIONS, OF_BOTH):
                continue
            rows = [row for row in part["points"] if row["method"] == name]
            points = curve((row["fraction"], row["kl"]) for row in rows)
            fraction, kl = found.get(name, (0.0, 0.0))
            fraction += min((f for f, kl_there in points if kl_there <= DRAWN_KL), default=math.inf)
            found[name] = fraction, kl + points[-1][1]
    best = sorted(found, key=lambda name: found[name])
    alike = [name for name in best if name.endswith(CODED[1])][1:]  # ours, over and over
    return set(found) - set([name for name in best if name not in alike][:DRAWN])
