"""Parts of the report on one reload: quality against bytes, keys and values apart, layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lexico_lab.evaluation.curves import curve
from lexico_lab.evaluation.report.numbers import number
from lexico_lab.evaluation.report.parts import Part, drawing
from lexico_lab.evaluation.report.plots import Axis, Point, Series, bars, lines
from lexico_lab.evaluation.report.tables import Table, ranged, text, value

Row = Mapping[str, Any]
Rows = Sequence[Row]

_CONTROL: float = 1e-6
"""A KL or an error that is nothing but rounding to the stored type."""


def quality(source: Row, ways: Rows, ours: Collection[str]) -> Part:
    """KL and NLL against bytes.

    Args:
        source: one of the document's.
        ways: the document's.
        ours: names of this project's ways.
    """
    rows = {row["name"]: row for row in source["fidelity"]}
    methods: dict[str, list[Row]] = {}
    for way in ways:
        if way["name"] in rows:
            methods.setdefault(way["method"], []).append(rows[way["name"]])
    strong = {way["method"] for way in ways if way["name"] in ours and way["name"] in rows}
    size = Axis("bytes, % of 16 bit", log=True)
    plots = [
        drawing(caption, lines(f"{caption}, {source['name']}", made, size, y))
        for caption, made, y in (
            ("KL against bytes", [*_curves(methods, strong, "kl")], Axis("KL, nats", log=True)),
            (
                "NLL increase against bytes",
                [*_curves(methods, strong, "nll_more")],
                Axis("NLL increase, nats"),
            ),
        )
    ]
    heads = ("", "bytes %", "KL", "keys alone", "values alone", "NLL increase", "NLL")
    cells = [
        [
            text(name),
            ranged(row["fraction"], 100),
            *(ranged(row[key]) for key in ("kl", "kl_keys", "kl_values", "nll_more")),
            value(row["nll"]["mean"]),
        ]
        for name, row in rows.items()
    ]
    table = Table(heads, cells, [name in ours for name in rows])
    equal = _equal_quality(source["bytes_at_kl"], strong)
    return Part("Quality against bytes", plots=plots, tables=[table, *equal])


def _curves(methods: Mapping[str, Rows], strong: Collection[str], key: str) -> Iterator[Series]:
    """A line a method, through the settings that none of its own beats in bytes and KL."""
    for index, (method, some) in enumerate(methods.items()):
        kept = {
            size for size, _ in curve((row["fraction"]["mean"], row["kl"]["mean"]) for row in some)
        }
        points = [
            Point(
                100 * row["fraction"]["mean"],
                row[key]["mean"],
                row[key]["low"],
                row[key]["high"],
                f"{row['name']}: {number(100 * row['fraction']['mean'])} %, "
                f"{number(row[key]['mean'])}",
                row["fraction"]["mean"] in kept,
            )
            for row in sorted(some, key=lambda row: float(row["fraction"]["mean"]))
        ]
        yield Series(method, points, index, strong=method in strong)


def _equal_quality(
    at: Mapping[str, Mapping[str, float | None]], ours: Collection[str]
) -> Iterator[Table]:
    """Bytes at equal KL; the least of each column stands out."""
    kept = {name: row for name, row in at.items() if any(row.values())}
    if not kept:
        return
    levels = list(next(iter(at.values())))
    best = {
        kl: min((found for row in at.values() if (found := row[kl])), default=0) for kl in levels
    }
    cells = [
        [text(name), *(value(row[kl], 100, best=row[kl] == best[kl]) for kl in levels)]
        for name, row in kept.items()
    ]
    yield Table(
        ["", *(f"KL {kl}" for kl in levels)],
        cells,
        [name in ours for name in kept],
        "Bytes, % of 16 bit, at equal KL: between two points of a curve, never beyond its ends.",
    )


def apart(source: Row, ways: Rows, ours: Collection[str]) -> Iterator[Part]:
    """KL with keys or values alone coded; arguments as for `quality`."""
    rows = {row["name"]: row for row in source["fidelity"]}
    shown = [way["name"] for way in ways if way["every_section"] and way["name"] in rows]
    split = [
        (name, [rows[name]["kl_keys"]["mean"], rows[name]["kl_values"]["mean"]])
        for name in shown
        if rows[name]["kl"]["mean"] > _CONTROL
    ]
    if split:
        caption, axis = "KL, one part coded", Axis("KL, nats", log=True)
        strong = [name in ours for name, _ in split]
        title = f"{caption}, {source['name']}"
        plot = bars(title, ("keys", "values"), split, axis, strong)
        yield Part("Keys and values apart", plots=[drawing(caption, plot)])


def layers(source: Row, ways: Rows, ours: Collection[str]) -> Iterator[Part]:
    """Error of each layer; arguments as for `quality`."""
    shown = {way["name"] for way in ways if way["every_section"]}
    rows = [
        row
        for row in source["fidelity"]
        if row["name"] in shown and max(row["layers"]["keys"]) > _CONTROL
    ]
    if not rows:
        return
    parts = ("keys", "values")
    layer, error = Axis("layer", whole=True), Axis("error, %", from_zero=True)
    plots = [
        drawing(
            part.capitalize(),
            lines(f"Error of {part}, {source['name']}", [*_errors(rows, part, ours)], layer, error),
        )
        for part in parts
    ]
    table = Table(
        ["layer", *(f"{row['name']}: {part}" for row in rows for part in parts)],
        [
            [text(at), *(value(row["layers"][part][at], 100) for row in rows for part in parts)]
            for at in range(len(rows[0]["layers"]["keys"]))
        ],
        summary="Numbers: squared error, % of squared norm",
    )
    yield Part("Error of each layer", plots=plots, tables=[table])


def _errors(rows: Rows, part: str, ours: Collection[str]) -> Iterator[Series]:
    for index, row in enumerate(rows):
        points = [
            Point(
                at,
                100 * error,
                title=f"{row['name']}, layer {at}: {number(100 * error)} %",
            )
            for at, error in enumerate(row["layers"][part])
        ]
        yield Series(row["name"], points, index, strong=row["name"] in ours)
