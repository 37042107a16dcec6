"""The report as one page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lexico_lab.evaluation.report import palette
from lexico_lab.evaluation.report.sections import sections_of


def page(document: dict[str, Any]) -> str:
    """The whole page of what `report.json` holds. Equal documents give equal pages."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        document=document,
        model=document["facts"]["model"],
        settings=document["settings"],
        sections=sections_of(document),
        dark_rules=palette.dark_rules(),
    )
