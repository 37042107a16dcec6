"""Parts of the report on reloads: a growing conversation, and questions to a context."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from lexico_lab.evaluation.report.numbers import number
from lexico_lab.evaluation.report.parts import Drawing, Part, drawing
from lexico_lab.evaluation.report.plots import Axis, Point, Series, bars, lines
from lexico_lab.evaluation.report.tables import Table, ranged, text, value

Row = Mapping[str, Any]
Rows = Sequence[Row]

_MODES: Final = ("requests", "turns")
_KINDS: Final = ("key-value", "needle")
_REPORTED: Final = (
    ("kl", "", 1),
    ("kl_once", ", coded once", 1),
    ("nll_more", ", NLL increase", 1),
    ("fraction", ", bytes %", 100),
)
"""Rows of a way: figure, what is added to the way's name, scale."""


def turns(source: Row, ours: Collection[str]) -> Iterator[Part]:
    """Reloads of a growing conversation.

    Args:
        source: one of the document's.
        ours: names of this project's ways.
    """
    if not source["turns"]:
        return
    by_way: dict[str, list[Row]] = {}
    for row in source["turns"]:
        by_way.setdefault(row["name"], []).append(row)
    coded = {n: some for n, some in by_way.items() if max(r["kl"]["mean"] for r in some) > 1e-6}
    heads = ["", *(f"{r['turn']} ({r['reloaded']} tokens)" for r in next(iter(by_way.values())))]
    cells, strong = [], []
    for name, some in by_way.items():
        for key, what, scale in _REPORTED:
            cells.append([text(f"{name}{what}"), *(ranged(row[key], scale) for row in some)])
            strong.append(name in ours and key == "kl")
    yield Part(
        "Turns: reloads of a growing conversation",
        plots=[*_drawn(source["name"], coded, ours)] if coded else (),
        tables=[Table(heads, cells, strong)],
    )


def _drawn(source: str, coded: Mapping[str, Rows], ours: Collection[str]) -> Iterator[Drawing]:
    reloads = Axis("reloads", whole=True)
    for caption, series, y in (
        ("KL at every reload", [*_kls(coded, ours)], Axis("KL, nats", log=True)),
        ("What piled up", [*_piled(coded, ours)], Axis("KL over KL coded once")),
    ):
        yield drawing(caption, lines(f"{caption}, {source}", series, reloads, y))


def _kls(coded: Mapping[str, Rows], ours: Collection[str]) -> Iterator[Series]:
    """KL of every way, with intervals and a dashed line for pages coded once where it is ours.

    Others get one thin line: there may be many.
    """
    for index, (name, some) in enumerate(coded.items()):
        mine = name in ours
        points = [_point(name, row, "kl", mine) for row in some]
        yield Series(name, points, index, strong=mine)
        if mine:
            once = f"{name}, coded once"
            points = [_point(once, row, "kl_once", False) for row in some]
            yield Series(once, points, index, strong=False, dashed=True)


def _point(name: str, row: Row, key: str, whiskers: bool) -> Point:
    mean, low, high = (row[key][part] for part in ("mean", "low", "high"))
    title = f"{name}, reload {row['turn']}: {number(mean)}"
    if not whiskers:
        low = high = None
    return Point(row["turn"], mean, low, high, title)


def _piled(coded: Mapping[str, Rows], ours: Collection[str]) -> Iterator[Series]:
    for index, (name, some) in enumerate(coded.items()):
        points = []
        for row in some:
            if row["kl_once"]["mean"] > 0:
                ratio = row["kl"]["mean"] / row["kl_once"]["mean"]
                title = f"{name}, reload {row['turn']}: {number(ratio)}"
                points.append(Point(row["turn"], ratio, title=title))
        yield Series(name, points, index, strong=name in ours)


def retrieval(source: Row, ours: Collection[str]) -> Iterator[Part]:
    """Questions to a context that was reloaded. Arguments as for `turns`."""
    rows = source["retrieval"]
    if not rows:
        return
    found = {(row["name"], row["mode"], row["kind"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    strong = [name in ours for name in names]
    plots = []
    for mode in _MODES:
        shown = [
            (name, [100 * found[name, mode, kind]["right"]["mean"] for kind in _KINDS])
            for name in names
        ]
        percent = Axis("%", from_zero=True, up_to=100)
        caption = f"Right answers, mode {mode}"
        title = f"{caption}, {source['name']}"
        plots.append(drawing(caption, bars(title, _KINDS, shown, percent, strong)))
    kinds = [(mode, kind) for mode in _MODES for kind in _KINDS]
    heads = [""]
    for mode, kind in kinds:
        heads += [f"{mode}, {kind}: right %", "score", "KL"]
    cells = []
    for name in names:
        line = [text(name)]
        for mode, kind in kinds:
            row = found[name, mode, kind]
            line += [ranged(row["right"], 100), ranged(row["score"]), value(row["kl"]["mean"])]
        cells.append(line)
    yield Part("Retrieval from a shared context", plots=plots, tables=[Table(heads, cells, strong)])
