"""Tables of what `shipped` measured, for docs/quality.md; they need no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

ABSENT: Final = "–"
"""What was not measured."""
SOURCES: Final = {"test.raw.txt": "WikiText-2", "train.jsonl": "GSM8K"}


def tables_of(document: Mapping[str, Any]) -> str:
    """Markdown: a table a source, a row a method."""
    return "\n\n".join("\n".join(lines_of(document, source)) for source in document["sources"])


def lines_of(document: Mapping[str, Any], source: Mapping[str, Any]) -> Iterator[str]:
    """Lines of one source's table."""
    last = document["settings"]["turns"]
    heads = ["bytes %", "KL", "reload 1", f"reload {last}", f"{last}, coded once"]
    heads += ["asked alone", "in turns", "encode", "decode"]
    title = SOURCES.get(source["name"], source["name"])
    yield f"| {title}, {source['texts']} texts | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    ours = {row["name"] for row in document["ways"] if row["ours"]}
    for row in source["fidelity"]:
        name = row["name"]
        turns = {turn["turn"]: turn for turn in source["turns"] if turn["name"] == name}
        cells = [f"{100 * row['fraction']['mean']:.1f}", _number(row["kl"])]
        for turn, key in ((1, "kl"), (last, "kl"), (last, "kl_once")):
            cells.append(_number(turns[turn][key]) if turn in turns else ABSENT)
        cells += [_right(source, name, mode) for mode in ("requests", "turns")]
        cells += [_time(document, source, name, part) for part in ("encode", "decode")]
        shown = f"**{name}**" if name in ours and name != "raw" else name
        yield f"| {shown} | {' | '.join(cells)} |"
    right = [_right(source, "exact cache", mode) for mode in ("requests", "turns")]
    yield f"| *exact cache* | 100.0 | 0 | 0 | 0 | 0 | {' | '.join(right)} | {ABSENT} | {ABSENT} |"


def _right(source: Mapping[str, Any], name: str, mode: str) -> str:
    """Share of questions of both kinds that were answered right."""
    rows = [row for row in source["retrieval"] if (row["name"], row["mode"]) == (name, mode)]
    asked = sum(row["questions"] for row in rows)
    right = sum(row["right"]["mean"] * row["questions"] for row in rows)
    return f"{100 * right / asked:.0f} %" if asked else ABSENT


def _time(document: Mapping[str, Any], source: Mapping[str, Any], name: str, part: str) -> str:
    """Over that of prefilling."""
    for row in document["times"]:
        if (row["name"], row["source"]) == (name, source["name"]):
            return f"{row[part]['mean']:.2f}"
    return ABSENT


def _number(value: Mapping[str, float]) -> str:
    return "0" if value["mean"] < 1e-6 else f"{value['mean']:.4f}"
