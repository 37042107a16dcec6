"""The sections of the report on reloads: a growing conversation, and questions to a context."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from lexico_lab.evaluation.svg import Axis, Point, Series, bars, number, plot
from lexico_lab.evaluation.tables import ranged, table, text, value

Rows = Sequence[dict[str, Any]]

_MODES: Final = ("requests", "turns")
_KINDS: Final = ("key-value", "needle")
_REPORTED: Final = (
    ("kl", "", 1),
    ("kl_once", ", coded once", 1),
    ("nll_more", ", NLL increase", 1),
    ("fraction", ", bytes %", 100),
)
"""Rows of a way: figure, what is added to the way's name, scale."""


def turns(source: dict[str, Any], ours: Collection[str]) -> Iterator[str]:
    """Reloads of a growing conversation.

    Args:
        source: one of the document's.
        ours: names of this project's ways.
    """
    if not source["turns"]:
        return
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in source["turns"]:
        by_way.setdefault(row["name"], []).append(row)
    yield "<h3>Turns: reloads of a growing conversation</h3>"
    coded = {n: some for n, some in by_way.items() if max(r["kl"]["mean"] for r in some) > 1e-6}
    if coded:
        reloads = Axis("reloads", whole=True)
        yield '<div class="plots">'
        yield plot("KL at every reload", [*_kls(coded, ours)], reloads, Axis("KL, nats", log=True))
        yield plot("What piled up", [*_piled(coded, ours)], reloads, Axis("KL over KL coded once"))
        yield "</div>"
    heads = ["", *(f"{r['turn']} ({r['reloaded']} tokens)" for r in next(iter(by_way.values())))]
    cells, strong = [], []
    for name, some in by_way.items():
        for key, what, scale in _REPORTED:
            cells.append([text(f"{name}{what}"), *(ranged(row[key], scale) for row in some)])
            strong.append(name in ours and key == "kl")
    yield table(heads, cells, strong)


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


def _point(name: str, row: dict[str, Any], key: str, whiskers: bool) -> Point:
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


def retrieval(source: dict[str, Any], ours: Collection[str]) -> Iterator[str]:
    """Questions to a context that was reloaded. Arguments as for `turns`."""
    rows = source["retrieval"]
    if not rows:
        return
    yield "<h3>Retrieval from a shared context</h3>"
    found = {(row["name"], row["mode"], row["kind"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    strong = [name in ours for name in names]
    yield '<div class="plots">'
    for mode in _MODES:
        shown = [
            (name, [100 * found[name, mode, kind]["right"]["mean"] for kind in _KINDS])
            for name in names
        ]
        percent = Axis("%", from_zero=True, up_to=100)
        yield bars(f"Right answers, mode {mode}", _KINDS, shown, percent, strong)
    yield "</div>"
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
    yield table(heads, cells, strong)
