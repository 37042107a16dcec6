"""Writes what studies measured into docs/: the plot quality.svg, the report eval-smollm2.html, the
tables of quality.md and that of presets.md.

    python -m lexico_lab.studies.pages            write both, and what lies between markers
    python -m lexico_lab.studies.pages --check    change nothing; exit 1 if one says otherwise
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lexico_lab.evaluation.report.page import page as page_of
from lexico_lab.record import RESULTS, ROOT
from lexico_lab.studies.plot import plot_of
from lexico_lab.studies.shipped_table import tables_of
from lexico_lab.studies.shown import sets_of
from lexico_lab.studies.tables import MISSING, cliffs_table_of, presets_table_of, table_of

DOCS: Final = ROOT / "docs"
REPORT: Final = "eval-smollm2.html"


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
    """Rewrites the plot, the report and the tables where they differ.

    Args:
        results: folder of quality.json, eval.json and cliffs.json; where one is absent its table
            says so, without the first there is no plot and without the second no report.
        docs: folder of quality.md, presets.md and what is drawn.
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
        wanted[image] = plot_of(measured)
    if evaluated:
        wanted[docs / REPORT] = page_of(evaluated["report"])
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
            sys.stderr.write(f"docs/{name}: not what results/ say; run lexico_lab.studies.pages\n")
        return 1 if stale else 0
    print(f"{len(stale)} files changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
