"""The sections of the report, from what `report.json` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lexico_lab.evaluation.report.fidelity_parts import apart, layers, quality
from lexico_lab.evaluation.report.parts import Part, Section, drawing
from lexico_lab.evaluation.report.plots import Axis, bars
from lexico_lab.evaluation.report.reload_parts import retrieval, turns
from lexico_lab.evaluation.report.tables import Table, ranged, text, value, wide

Document = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def sections_of(document: Document) -> list[Section]:
    """All of them, a file of texts after the other."""
    ways = document["ways"]
    ours = {way["name"] for way in ways if way["ours"]}
    found = [Section("methods", "Methods", [*_methods(document)])]
    for index, source in enumerate(document["sources"]):
        parts = [
            quality(source, ways, ours),
            *apart(source, ways, ours),
            *layers(source, ways, ours),
            *turns(source, ours),
            *retrieval(source, ours),
        ]
        found.append(Section(f"s{index}", source["name"], parts))
    if document["times"]:
        found.append(Section("times", "Times", [_times(document["times"])], "Times over prefill"))
    settings = Section(
        "settings", "Settings", [*_settings(document)], "Settings, versions, hardware"
    )
    return [*found, settings]


def _methods(document: Document) -> Iterator[Part]:
    ways = document["ways"]
    rows = [
        [
            text(way["name"]),
            text(way.get("codec", "published method")),
            wide(way.get("config", "")),
            text(way.get("set", "") or "–"),
            value(way.get("frames_a_page")),
        ]
        for way in ways
    ]
    heads = ("name", "codec", "configuration", "dictionary set", "frames a page")
    yield Part(tables=[Table(heads, rows, [way["ours"] for way in ways])])
    yield Part(notes=[document["peers"]], tables=[*_left_out(document)])


def _left_out(document: Document) -> Iterator[Table]:
    every = len(document["sources"])
    rows = [
        [
            text(one["name"]),
            wide("all" if len(one["sources"]) == every else ", ".join(one["sources"])),
            wide(one["reason"]),
        ]
        for one in document["not_run"]
    ]
    if rows:
        caption = "Left out, of everything or of the sections named:"
        yield Table(("name", "files", "reason"), rows, caption=caption)


def _times(rows: Rows) -> Part:
    several = len({row["source"] for row in rows}) > 1
    names = [f"{row['name']}, {row['source']}" if several else row["name"] for row in rows]
    shown = [
        (name, [row["encode"]["mean"], row["decode"]["mean"]])
        for name, row in zip(names, rows, strict=True)
    ]
    caption, axis = "Over the time to prefill the same tokens", Axis("times prefill", log=True)
    plot = bars(caption, ("encode", "decode"), shown, axis)
    cells = [
        [text(name), ranged(row["encode"]), ranged(row["decode"]), value(row["prefill_s"])]
        for name, row in zip(names, rows, strict=True)
    ]
    heads = ("", "encode / prefill", "decode / prefill", "prefill, s")
    return Part(plots=[drawing(caption, plot)], tables=[Table(heads, cells)])


def _settings(document: Document) -> Iterator[Part]:
    yield Part(command=document["command"])
    environment = {**document["environment"]}
    versions = environment.pop("versions")
    facts = document["facts"]
    parts = [("Settings", document["settings"]), ("Model", facts["model"])]
    parts += [(f"Dictionary set {one['name']}", one) for one in facts["sets"]]
    parts += [("Machine", environment), ("Versions", versions)]
    for name, found in parts:
        rows = [[text(key), wide(_plain(content))] for key, content in found.items()]
        yield Part(name, tables=[Table(("", ""), rows)])


def _plain(content: object) -> str:
    if isinstance(content, list):
        return ", ".join(map(str, content)) or "–"
    return "–" if content is None else str(content)
