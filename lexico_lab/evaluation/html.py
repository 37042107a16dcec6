"""The report as one page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from lexico_lab.evaluation.sections import body_of

STYLE: Final = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2125;--dim:#5c6670;--line:#d9dee3;--soft:#f4f6f8;
--c0:#1f6fd6;--c1:#d3541b;--c2:#17884f;--c3:#9140c9;--c4:#a8780a;--c5:#c4296c;--c6:#0c8b97;
--c7:#7a5a3c;--c8:#6272d9;--c9:#5f8a14;--c10:#b03a3a;--c11:#707982}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e6eaee;--dim:#9aa5b0;--line:#333b43;
--soft:#1c2228;--c0:#6aa9ff;--c1:#ff8f5a;--c2:#4fcb8d;--c3:#c894f7;--c4:#e0b84a;--c5:#ff7fb2;
--c6:#4dd0dc;--c7:#c9a27c;--c8:#a3aeff;--c9:#a9d65a;--c10:#f08080;--c11:#aab4be}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:1.5rem 1rem 4rem;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;margin:.2rem 0}h2{margin:2.4rem 0 .6rem;font-size:1.3rem;
border-bottom:1px solid var(--line);padding-bottom:.2rem}h3{margin:1.6rem 0 .4rem;font-size:1.08rem}
p,li{max-width:75ch}.dim{color:var(--dim)}a{color:var(--c0)}
nav a{margin-right:1rem;white-space:nowrap}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr));gap:1rem}
figure{margin:0;padding:.7rem;background:var(--soft);border-radius:8px}
figcaption{font-weight:600;margin-bottom:.3rem}
svg{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}
svg text{fill:var(--fg)}svg .small{font-size:10px;fill:var(--dim)}svg .ours{font-weight:600}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--dim);fill:none}
.line{stroke:var(--c);fill:none;stroke-linejoin:round}.mark,.bar{fill:var(--c)}
.mark:hover,.bar:hover{stroke:var(--fg);stroke-width:1.5}
.whisker{stroke:var(--c);stroke-width:1;opacity:.6}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.4rem 0 0;padding:0;
font-size:13px}
.key{display:inline-block;width:1.3em;height:0;border-top:3px solid var(--c);margin-right:.4em;
vertical-align:middle}svg.key{width:2em;height:.9em;border:0}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,td.text,th.text{text-align:left}
td.wrap{white-space:normal;text-align:left;overflow-wrap:anywhere;min-width:18rem}
thead th{border-bottom:2px solid var(--dim)}tr.ours td:first-child{font-weight:600}
.best{font-weight:700}.ci{color:var(--dim);font-size:12px}
summary{cursor:pointer;color:var(--dim)}pre{white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--soft);padding:.8rem;border-radius:8px;font-size:12.5px}
"""


def page(document: dict[str, Any]) -> str:
    """The whole page of what `report.json` holds."""
    model = document["facts"]["model"]["name"]
    title = f"lexico eval: {model}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            *body_of(document),
            "</body>",
            "</html>",
            "",
        ]
    )
