"""The sections of the report: plots, and tables of the numbers under them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from lexico_lab.evaluation.curves import curve
from lexico_lab.evaluation.reload_sections import retrieval, turns
from lexico_lab.evaluation.svg import Axis, Point, Series, bars, number, plot
from lexico_lab.evaluation.tables import folded, ranged, table, text, value, wide

Document = dict[str, Any]
Rows = Sequence[dict[str, Any]]

_HOW = """
<p>A node prefills a text and stores the whole pages of its cache. Another node reloads them in
place of prefilling. This report compares ways to store the pages: how many bytes they take, and how
much the predictions made on the reloaded cache differ from those of a node that never
compressed.</p>
<ul>
<li><b>Bytes</b> are per cent of the stored tokens' keys and values at 16 bits an element. For the
project's codecs they are whole frames, headers and exact first tokens included; for published
methods codes, scales, indices and exact first tokens, as the repository's bench counts them.</li>
<li><b>KL</b> is the mean divergence of the next-token distribution from the exact cache's, in nats,
over all tokens of the continuation. Lower and further left is better; a method's line leaves out
settings that another one of it beats in both. <b>NLL increase</b> is what
the true text costs more, in nats a token; it may be negative by chance.</li>
<li><b>Published methods</b> take part in quality against bytes; one that was asked for by name
takes part in every section but times. At every reload it codes the pages that are new as one range,
and pays each time for what it stores once a range, such as scales of channels. One that evicts
tokens leaves a shorter cache and no pages: it takes part in quality against bytes alone, not in
keys and values apart, turns and retrieval, also where it was asked for. Its bytes are those of the
vectors that each head keeps and of their indices.</li>
<li><b>Keys alone, values alone</b>: only that part is as it comes back, the other is exact.</li>
<li><b>Relative error</b> is the squared error of a layer's vectors over their squared norm, without
the first tokens, which stay exact.</li>
<li><b>Turns</b>: a conversation is reloaded but for its newest tokens, goes on for a while, its new
pages are stored, and so on. Pages already stored are not coded again, but new ones are computed on
top of coded ones. The dashed line reloads pages that were all coded from the exact cache: what the
solid line has above it piled up. Texts differ from turn to turn, so that the lines rise and fall
together. Bytes in the table are of all that is stored when a turn has ended, its own new pages
included.</li>
<li><b>Retrieval</b>: words are hidden in a context that is stored once. In mode requests every
question is asked on the reloaded context alone; in mode turns they follow one another in a
conversation that is stored and reloaded between them (modes of SCBench). Score is the
log-probability of the right word among the candidates; compare with the exact cache, not with 100
%.</li>
<li><b>Times</b> are over the time that this machine takes to prefill the same tokens in the same
run: below 1 a reload is faster than prefilling, before any network. Published methods are not
timed: what runs here are prototypes.</li>
<li>Brackets and whiskers are 95 % intervals over texts (bootstrap). They say how much the mean
depends on the choice of texts, nothing about other models. With few texts they are too narrow; one
text has none.</li>
<li><b>raw</b> is the control: what it differs by is rounding to the stored element type.</li>
</ul>
"""


def body_of(document: Document) -> Iterator[str]:
    """All sections."""
    sources = document["sources"]
    settings, model = document["settings"], document["facts"]["model"]
    texts = ", ".join(f"{source['name']} ({source['texts']})" for source in sources)
    yield (
        f'<p class="dim">{escape(model["class"])}, {model["layers"]} layers, {model["kv_heads"]} '
        f"KV heads of {model['head_dim']}. Texts: {escape(texts)}. {settings['coded']} of "
        f"{settings['prefix']} tokens stored in pages of {settings['page_tokens']}, the next "
        f"{settings['continuation']} predicted. {escape(document['environment']['date'])}.</p>"
    )
    names = [("how", "How to read it"), ("methods", "Methods")]
    names += [(f"s{i}", source["name"]) for i, source in enumerate(sources)]
    names += [("times", "Times"), ("settings", "Settings")]
    yield "<nav>" + "".join(f'<a href="#{at}">{escape(name)}</a>' for at, name in names) + "</nav>"
    yield f'<h2 id="how">How to read it</h2>{_HOW}'
    yield from _methods(document)
    ours = _ours(document["ways"])
    for index, source in enumerate(sources):
        yield f'<h2 id="s{index}">{escape(source["name"])}</h2>'
        yield from _fidelity(source, document["ways"])
        yield from _layers(source, document["ways"])
        yield from turns(source, ours)
        yield from retrieval(source, ours)
    yield from _times(document["times"])
    yield from _settings(document)


def _methods(document: Document) -> Iterator[str]:
    yield '<h2 id="methods">Methods</h2>'
    rows = [
        [
            text(way["name"]),
            text(way.get("codec", "published method")),
            wide(way.get("config", "")),
            text(way.get("set", "") or "–"),
            value(way.get("frames_a_page")),
        ]
        for way in document["ways"]
    ]
    heads = ("name", "codec", "configuration", "dictionary set", "frames a page")
    yield table(heads, rows, [way["ours"] for way in document["ways"]])
    yield f"<p>{escape(document['peers'])}</p>"
    if document["not_run"]:
        every = len(document["sources"])
        lines = [
            [
                text(one["name"]),
                wide("all" if len(one["sources"]) == every else ", ".join(one["sources"])),
                wide(one["reason"]),
            ]
            for one in document["not_run"]
        ]
        yield "<p>Left out, of everything or of the sections named:</p>"
        yield table(("name", "files", "reason"), lines)


def _fidelity(source: Document, ways: Rows) -> Iterator[str]:
    rows = {row["name"]: row for row in source["fidelity"]}
    methods: dict[str, list[dict[str, Any]]] = {}
    ours = set()
    for way in ways:
        if way["name"] in rows:
            methods.setdefault(way["method"], []).append(rows[way["name"]])
            if way["ours"]:
                ours.add(way["method"])

    kept = {
        method: {
            size for size, _ in curve((row["fraction"]["mean"], row["kl"]["mean"]) for row in some)
        }
        for method, some in methods.items()
    }

    def series(key: str) -> list[Series]:
        return [
            Series(
                method,
                [
                    Point(
                        100 * row["fraction"]["mean"],
                        row[key]["mean"],
                        row[key]["low"],
                        row[key]["high"],
                        f"{row['name']}: {number(100 * row['fraction']['mean'])} %, "
                        f"{number(row[key]['mean'])}",
                        row["fraction"]["mean"] in kept[method],
                    )
                    for row in sorted(some, key=lambda row: float(row["fraction"]["mean"]))
                ],
                index,
                strong=method in ours,
            )
            for index, (method, some) in enumerate(methods.items())
        ]

    yield "<h3>Quality against bytes</h3>"
    size = Axis("bytes, % of 16 bit", log=True)
    yield '<div class="plots">'
    yield plot("KL against bytes", series("kl"), size, Axis("KL, nats", log=True))
    yield plot("NLL increase against bytes", series("nll_more"), size, Axis("NLL increase, nats"))
    yield "</div>"
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
    of_ours = _ours(ways)
    yield table(heads, cells, [name in of_ours for name in rows])
    yield from _equal_quality(source["bytes_at_kl"], ours)
    shown = [way["name"] for way in ways if way["every_section"] and way["name"] in rows]
    split = [
        (name, [rows[name]["kl_keys"]["mean"], rows[name]["kl_values"]["mean"]])
        for name in shown
        if rows[name]["kl"]["mean"] > 1e-6
    ]
    if split:
        yield "<h3>Keys and values apart</h3>"
        yield bars(
            "KL, one part coded",
            ("keys", "values"),
            split,
            Axis("KL, nats", log=True),
            [name in of_ours for name, _ in split],
        )


def _ours(ways: Rows) -> set[str]:
    return {way["name"] for way in ways if way["ours"]}


def _equal_quality(at: dict[str, dict[str, float | None]], ours: set[str]) -> Iterator[str]:
    """Bytes at equal KL; the least of each column stands out."""
    levels = list(next(iter(at.values()))) if at else []
    best = {
        kl: min((found for row in at.values() if (found := row[kl])), default=0) for kl in levels
    }
    kept = {name: row for name, row in at.items() if any(row.values())}
    if not kept:
        return
    cells = [
        [text(name), *(value(row[kl], 100, best=row[kl] == best[kl]) for kl in levels)]
        for name, row in kept.items()
    ]
    yield (
        "<p>Bytes, % of 16 bit, at equal KL: between two points of a curve, never beyond its "
        "ends.</p>"
    )
    yield table(["", *(f"KL {kl}" for kl in levels)], cells, [name in ours for name in kept])


def _layers(source: Document, ways: Rows) -> Iterator[str]:
    of_ours, shown = _ours(ways), {way["name"] for way in ways if way["every_section"]}
    rows = [
        row
        for row in source["fidelity"]
        if row["name"] in shown and max(row["layers"]["keys"]) > 1e-6
    ]
    if not rows:
        return
    yield '<h3>Error of each layer</h3><div class="plots">'
    for part in ("keys", "values"):
        series = [
            Series(
                row["name"],
                [
                    Point(
                        layer,
                        100 * error,
                        title=f"{row['name']}, layer {layer}: {number(100 * error)} %",
                    )
                    for layer, error in enumerate(row["layers"][part])
                ],
                index,
                strong=row["name"] in of_ours,
            )
            for index, row in enumerate(rows)
        ]
        yield plot(
            f"{part.capitalize()}",
            series,
            Axis("layer", whole=True),
            Axis("error, %", from_zero=True),
        )
    yield "</div>"
    heads = ["layer", *(f"{row['name']}: {part}" for row in rows for part in ("keys", "values"))]
    cells = [
        [
            text(layer),
            *(
                value(row["layers"][part][layer], 100)
                for row in rows
                for part in ("keys", "values")
            ),
        ]
        for layer in range(len(rows[0]["layers"]["keys"]))
    ]
    yield folded("Numbers: squared error, % of squared norm", table(heads, cells))


def _times(rows: Rows) -> Iterator[str]:
    if not rows:
        return
    yield '<h2 id="times">Times over prefill</h2>'
    several = len({row["source"] for row in rows}) > 1
    names = [f"{row['name']}, {row['source']}" if several else row["name"] for row in rows]
    shown = [
        (name, [row["encode"]["mean"], row["decode"]["mean"]])
        for name, row in zip(names, rows, strict=True)
    ]
    yield bars(
        "Over the time to prefill the same tokens",
        ("encode", "decode"),
        shown,
        Axis("times prefill", log=True),
    )
    cells = [
        [text(name), ranged(row["encode"]), ranged(row["decode"]), value(row["prefill_s"])]
        for name, row in zip(names, rows, strict=True)
    ]
    yield table(("", "encode / prefill", "decode / prefill", "prefill, s"), cells)


def _settings(document: Document) -> Iterator[str]:
    yield '<h2 id="settings">Settings, versions, hardware</h2>'
    yield f"<pre>{escape(document['command'])}</pre>"
    environment = {**document["environment"]}
    versions = environment.pop("versions")
    model = document["facts"]["model"]
    parts = [("Settings", document["settings"]), ("Model", model)]
    parts += [(f"Dictionary set {one['name']}", one) for one in document["facts"]["sets"]]
    parts += [("Machine", environment), ("Versions", versions)]
    for name, found in parts:
        rows = [[text(key), wide(_plain(content))] for key, content in found.items()]
        yield f"<h3>{escape(name)}</h3>{table(('', ''), rows)}"


def _plain(content: object) -> str:
    if isinstance(content, list):
        return ", ".join(map(str, content)) or "–"
    return "–" if content is None else str(content)
