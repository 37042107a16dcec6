"""Draws what `bench.quality` measured, and writes its table and those of `bench.eval` and
`bench.cliffs` into docs/quality.md, that of the presets into docs/presets.md.

    python -m bench.quality_plot            write docs/quality.svg and what lies between markers
    python -m bench.quality_plot --check    change nothing; exit 1 if either says otherwise

A line goes through the settings of a method that none of its own beats in both bytes and KL; dots
are all settings. A setting of KL 0 has no place on the axis and is left out. Of the methods that
evict, alone or with what they keep coded, the best three are drawn, one of them at most before
lexico-residual. The table has all, their bytes at equal KL.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from bench.eval_table import tables_of
from bench.report import RESULTS
from lexico_codec.codecs import CODECS
from lexico_codec.sets.transform import QUALITIES
from lexico_lab.evaluation.curves import curve
from lexico_lab.evaluation.svg import Axis, number
from lexico_lab.published.titles import CODERS, EVICTIONS, OURS

DOCS: Final = Path(__file__).parent.parent / "docs"
MISSING: Final = "Not measured yet."
SETS: Final = {"wikitext2": "WikiText-2", "gsm8k": "GSM8K"}
CODED: Final = (" + lexico", " + lexico-residual")
"""End the name of an eviction whose kept tokens are coded, by what."""
MEASURED_PRESETS: Final = {
    **{quality: f"lexico-residual {quality}" for quality in QUALITIES},
    "paper": "lexico s=8",
}
"""Presets by the coder that measured them."""
DRAWN: Final = 3
"""Evictions in the plot: those that get to `DRAWN_KL` with the fewest bytes."""
DRAWN_KL: Final = 0.1

_OURS, _CODERS, _EVICTIONS, _BOTH = range(4)
_GROUPS: Final = ("ours", "published codecs", "eviction", "eviction, what is kept coded by ours")

_PANEL, _HEIGHT, _LEFT, _TOP = 400, 360, 66, 40
_GAP: Final = 30
_WIDTH: Final = _LEFT + 2 * _PANEL + _GAP + 16
_LEGEND_TOP: Final = _TOP + _HEIGHT + 72
_COLUMNS: Final = 4
_LIGHT: Final = (
    "#d3541b", "#17884f", "#9140c9", "#a8780a", "#c4296c", "#0c8b97",
    "#7a5a3c", "#6272d9", "#5f8a14", "#b03a3a",
)  # fmt: skip
_DARK: Final = (
    "#ff8f5a", "#4fcb8d", "#c894f7", "#e0b84a", "#ff7fb2", "#4dd0dc",
    "#c9a27c", "#a3aeff", "#a9d65a", "#f08080",
)  # fmt: skip
_STROKES: Final = ("3.4", "1.6", "1.1", "1.1")
_DASHES: Final = (
    *("", "", ' stroke-dasharray="1.5 3"'),
    *(' stroke-dasharray="7 3"', ' stroke-dasharray="7 2 2 2"'),
)
_RADII: Final = (4.2, 2.6, 1.8, 1.8)
_OUR_DASHES: Final = ("", ' stroke-dasharray="9 4"', ' stroke-dasharray="3 3"')

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """How a method is shown."""

    name: str
    """In the result."""
    title: str
    group: int
    colour: str
    """Class of the style sheet."""
    dash: str


def sets_of(result: Result) -> dict[str, Result]:
    """The text sets of a result: name → what was measured."""
    return {
        name: part for name, part in result.items() if isinstance(part, dict) and "points" in part
    }


def methods_of(names: Iterable[str]) -> list[Method]:
    """Every method, ours first, each kind in the order of `titles` and by name."""
    shown: list[Method] = []
    order = [*OURS, *CODECS, *CODERS, *EVICTIONS]
    places = {name: order.index(name) for name in order}

    def place(name: str) -> tuple[int, int, str]:
        bare = _bare(name)
        return _group(name), places.get(bare, len(order)), name

    for name in sorted(set(names), key=place):
        group, bare = _group(name), _bare(name)
        in_group = sum(one.group == group for one in shown)
        if group == _OURS:
            title, colour = bare, "ours"
            dash = _OUR_DASHES[in_group % len(_OUR_DASHES)]
        else:
            known = CODERS if group == _CODERS else EVICTIONS
            title, dash = known.get(bare, bare) + name[len(bare) :], _DASHES[group]
            if name.endswith(CODED[1]):
                dash = _DASHES[-1]
            number_of = list(known).index(bare) if bare in known else in_group
            colour = f"c{number_of % len(_LIGHT)}"
        shown.append(Method(name, title, group, colour, dash))
    return shown


def table_of(result: Result) -> str:
    """Markdown: the plot, then bytes at equal KL for each text set."""
    sets = sets_of(result)
    if not sets:
        return MISSING
    parts = [
        "![KL against bytes, one line a method](quality.svg)",
        "Bytes in % of fp16 at equal KL (nats), lower is better; – where a method's settings do "
        "not reach from above that KL to below it.",
    ]
    for name, measured in sets.items():
        at: Mapping[str, Mapping[str, float | None]] = measured["bytes_at_kl"]
        methods, kls = methods_of(at), list(measured["lead"])
        rows = [f"| {SETS.get(name, name)}, {measured['texts']} texts: KL | {' | '.join(kls)} |"]
        rows.append("|---" * (len(kls) + 1) + "|")
        for one in methods:
            title = f"**{one.title}**" if one.group == _OURS else one.title
            cells = [_percent(at[one.name].get(kl)) for kl in kls]
            rows.append(f"| {title} | {' | '.join(cells)} |")
        leads = [measured["lead"][kl] for kl in kls]
        cells = ["–" if lead is None else f"{lead:.1f}" for lead in leads]
        rows.append(f"| lead | {' | '.join(cells)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def presets_table_of(result: Result) -> str:
    """Markdown: a row a preset, KL with its standard error and bytes of each text set."""
    sets = sets_of(result)
    if not sets:
        return MISSING
    titles = [SETS.get(name, name) for name in sets]
    heads = [f"{title}: {what}" for title in titles for what in ("KL", "% of fp16")]
    lines = [f"| preset | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for preset, coder in MEASURED_PRESETS.items():
        cells = []
        for part in sets.values():
            row = next(row for row in part["points"] if row["coder"] == coder)
            size = 100 * row["fraction"]
            cells.append(f"{row['kl']:.4f} ± {row['kl_standard_error']:.4f}")
            cells.append(f"{size:.1f}" if size >= 1 else f"{size:.2f}")
        lines.append(f"| `{preset}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def cliffs_table_of(result: Result) -> str:
    """Markdown: a row a case, a column a preset; what decides first, as the result has it."""
    if not result:
        return MISSING
    cells: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        name = row["case"] if row["decides"] else f"*{row['case']}*"
        cells.setdefault(name, {})[row["preset"]] = _cell(row)
    presets = list(next(iter(cells.values())))
    lines = [
        f"| KL over the plain case's, ± standard error; bytes | {' | '.join(presets)} |",
        "|---" * (len(presets) + 1) + "|",
    ]
    lines += [
        f"| {name} | {' | '.join(of[preset] for preset in presets)} |" for name, of in cells.items()
    ]
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused, {row['refused']} of {row['texts']}"
    return f"{row['ratio']:.2f} ± {row['ratio_standard_error']:.2f}; {row['bytes_ratio']:.2f}"


def svg_of(result: Result) -> str:
    """The plot: a panel for each of the first two text sets, on equal axes, and a legend."""
    sets = dict(list(sets_of(result).items())[:2])
    left_out = _not_drawn(sets)
    rows = [
        row
        for part in sets.values()
        for row in part["points"]
        if row["kl"] > 0 and row["method"] not in left_out
    ]
    methods = methods_of(row["method"] for row in rows)
    x = Axis("bytes, % of fp16", log=True).fitted(100 * row["fraction"] for row in rows)
    y = Axis("KL, nats", log=True).fitted(row["kl"] for row in rows)
    panels = [
        _panel(index, SETS.get(name, name), part["points"], methods, x, y)
        for index, (name, part) in enumerate(sets.items())
    ]
    legend, height = _legend(methods)
    title = "KL against bytes of every method"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{_style()}</style>\n"
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>\n'
        f"{''.join(panels)}{legend}</svg>\n"
    )


def filled(text: str, table: str, name: str = "quality") -> str:
    """`text` with what lies between the markers of a name taken from `table`.

    Raises:
        SystemExit: not one pair of markers.
    """
    opening, closing = f"<!-- {name}:table -->", f"<!-- /{name}:table -->"
    before, start, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not start or not end or opening in rest or closing in after:
        raise SystemExit(f"docs: a page needs {opening} and {closing}, once each")
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


def write(results: Path = RESULTS, docs: Path = DOCS, *, check: bool = False) -> list[str]:
    """Rewrites the plot and the tables where they differ.

    Args:
        results: folder of quality.json, eval.json and cliffs.json; where one is absent its table
            says so, and without the first there is no plot.
        docs: folder of quality.md, presets.md and quality.svg.
        check: change nothing.

    Returns:
        Names of the files that differed.
    """
    measured, evaluated, hard = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for path in (results / f"{name}.json" for name in ("quality", "eval", "cliffs"))
    )
    page, image = docs / "quality.md", docs / "quality.svg"
    text = filled(page.read_text(encoding="utf-8"), table_of(measured))
    text = filled(text, tables_of(evaluated["report"]) if evaluated else MISSING, "eval")
    presets = docs / "presets.md"
    wanted = {
        page: filled(text, cliffs_table_of(hard), "cliffs"),
        presets: filled(presets.read_text(encoding="utf-8"), presets_table_of(measured), "presets"),
    }
    if sets_of(measured):
        wanted[image] = svg_of(measured)
    stale = [
        path
        for path, content in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != content
    ]
    if not check:
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
    return [path.name for path in stale]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites or checks; exit code 1 where a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if different")
    options = parser.parse_args(arguments)
    stale = write(check=options.check)
    if options.check:
        for name in stale:
            sys.stderr.write(f"docs/{name}: not what results/ say; run bench.quality_plot\n")
        return 1 if stale else 0
    print(f"{len(stale)} files changed")
    return 0


def _bare(name: str) -> str:
    """The eviction whose kept tokens are coded, or the method itself."""
    return next((name.removesuffix(end) for end in CODED if name.endswith(end)), name)


def _group(name: str) -> int:
    if name in CODECS:
        return _OURS
    if _bare(name) != name:
        return _BOTH
    return _EVICTIONS if name in EVICTIONS else _CODERS


def _not_drawn(sets: Mapping[str, Result]) -> set[str]:
    """Evictions that others leave no place for: by bytes to `DRAWN_KL`, then by their least KL."""
    found: dict[str, tuple[float, float]] = {}
    for part in sets.values():
        for name in {row["method"] for row in part["points"]}:
            if _group(name) not in (_EVICTIONS, _BOTH):
                continue
            rows = [row for row in part["points"] if row["method"] == name]
            points = curve((row["fraction"], row["kl"]) for row in rows)
            fraction, kl = found.get(name, (0.0, 0.0))
            fraction += min((f for f, kl_there in points if kl_there <= DRAWN_KL), default=math.inf)
            found[name] = fraction, kl + points[-1][1]
    best = sorted(found, key=lambda name: found[name])
    alike = [name for name in best if name.endswith(CODED[1])][1:]  # ours, over and over
    return set(found) - set([name for name in best if name not in alike][:DRAWN])


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _panel(
    index: int, title: str, rows: Sequence[Result], methods: Sequence[Method], x: Axis, y: Axis
) -> str:
    left = _LEFT + index * (_PANEL + _GAP)
    right, bottom = left + _PANEL, _TOP + _HEIGHT

    def at(fraction: float, kl: float) -> tuple[str, str]:
        px, py = left + _PANEL * x.place(100 * fraction), bottom - _HEIGHT * y.place(kl)
        return f"{px:.1f}", f"{py:.1f}"

    parts = [f'<text class="head" x="{left}" y="{_TOP - 14}">{escape(title)}</text>\n']
    for tick in x.ticks():
        px = f"{left + _PANEL * x.place(tick):.1f}"
        parts.append(
            f'<path class="grid" d="M{px},{_TOP} V{bottom}"/>'
            f'<text x="{px}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>\n'
        )
    for tick in y.ticks():
        level = bottom - _HEIGHT * y.place(tick)
        parts.append(f'<path class="grid" d="M{left},{level:.1f} H{right}"/>\n')
        if not index:
            parts.append(
                f'<text x="{left - 8}" y="{level + 4:.1f}" text-anchor="end">'
                f"{number(tick)}</text>\n"
            )
    parts.append(
        f'<path class="axis" d="M{left},{_TOP} V{bottom} H{right}"/>'
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 40}" text-anchor="middle">'
        f"{escape(x.label)}</text>\n"
    )
    if not index:
        middle = _TOP + _HEIGHT / 2
        parts.append(
            f'<text transform="translate(18 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(y.label)}</text>\n"
        )
    for one in reversed(methods):  # ours on top
        own = [row for row in rows if row["method"] == one.name and row["kl"] > 0]
        corners = [at(*point) for point in curve((row["fraction"], row["kl"]) for row in own)]
        if len(corners) > 1:
            points = " ".join(",".join(corner) for corner in corners)
            parts.append(
                f'<polyline class="line {one.colour}" stroke-width="{_STROKES[one.group]}"'
                f'{one.dash} points="{points}"/>\n'
            )
        for row in own:
            px, py = at(row["fraction"], row["kl"])
            told = f"{row['coder']}: {100 * row['fraction']:.1f} %, KL {number(row['kl'])}"
            parts.append(
                f'<circle class="dot {one.colour}" cx="{px}" cy="{py}" r="{_RADII[one.group]}">'
                f"<title>{escape(told)}</title></circle>\n"
            )
    return "".join(parts)


def _legend(methods: Sequence[Method]) -> tuple[str, int]:
    """Keys of all methods, a block a kind, and how high the plot is with them."""
    parts, top = [], _LEGEND_TOP
    width = (_WIDTH - _LEFT) / _COLUMNS
    for group, title in enumerate(_GROUPS):
        members = [one for one in methods if one.group == group]
        if not members:
            continue
        parts.append(f'<text class="head" x="{_LEFT}" y="{top}">{title}</text>\n')
        for place, one in enumerate(members):
            left, line = _LEFT + width * (place % _COLUMNS), top + 20 * (1 + place // _COLUMNS)
            parts.append(
                f'<path class="line {one.colour}" stroke-width="{_STROKES[group]}"{one.dash} '
                f'd="M{left:.0f},{line - 4} h34"/>'
                f'<text x="{left + 42:.0f}" y="{line}">{escape(one.title)}</text>\n'
            )
        top += 20 * (-(-len(members) // _COLUMNS) + 1) + 12
    return "".join(parts), top


def _style() -> str:
    """Without CSS variables, which not every renderer knows."""

    def theme(ground: str, text: str, grid: str, ours: str, others: Sequence[str]) -> str:
        named = {"ours": ours, **{f"c{place}": colour for place, colour in enumerate(others)}}
        return (
            f".ground{{fill:{ground}}}text{{fill:{text}}}.axis{{stroke:{text}}}"
            f".grid{{stroke:{grid}}}"
            + "".join(
                f".line.{name}{{stroke:{colour}}}.dot.{name}{{fill:{colour}}}"
                for name, colour in named.items()
            )
        )

    return (
        "svg{font:13px system-ui,sans-serif}.head{font-weight:600}.axis,.line{fill:none}"
        ".line{stroke-linejoin:round}"
        f"{theme('#fff', '#1d2125', '#e1e5e9', '#1257b8', _LIGHT)}"
        "@media(prefers-color-scheme:dark){"
        f"{theme('#14181c', '#e6eaee', '#333b43', '#7db4ff', _DARK)}}}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
