"""Tables for docs/ of what studies measured, in Markdown; they need no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lexico_codec.sets.transform import QUALITIES
from lexico_lab.studies.shown import OF_OURS, SETS, Result, methods_of, sets_of

MISSING: Final = "Not measured yet."
MEASURED_PRESETS: Final = {
    **{quality: f"lexico-residual {quality}" for quality in QUALITIES},
    "paper": "lexico s=8",
}
"""Presets by the coder that measured them."""


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
            title = f"**{one.title}**" if one.group == OF_OURS else one.title
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


def _cell(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"refused, {row['refused']} of {row['texts']}"
    return f"{row['ratio']:.2f} ± {row['ratio_standard_error']:.2f}; {row['bytes_ratio']:.2f}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"
