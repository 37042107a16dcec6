"""Links between documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.support import proto_page

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/**/*.md", "examples/**/*.md", "lexico_*/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK: Final = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
HEADING: Final = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def anchors_of(document: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, hyphens for spaces, no punctuation."""
    found: set[str] = set()
    for heading in HEADING.findall(
        re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    ):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def lost_links_of(document: Path) -> list[str]:
    lost = []
    for link in LINK.findall(BLOCK.sub("", document.read_text())):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        there = (document.parent / place).resolve() if place else document
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    assert lost_links_of(document) == []


def test_the_page_of_the_calls_is_that_of_the_proto_files() -> None:
    assert proto_page.PAGE.read_text() == proto_page.page(), "python -m tests.support.proto_page"


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    document = tmp_path / "one.md"
    document.write_text(
        "# One, and `more`\n[a](#one-and-more) [b](#two) [c](two.md) [d](one.md#one)\n"
        "[e](https://example.org/x#y) `[f](none.md)`\n```\n[g](none.md)\n```\n"
    )
    assert lost_links_of(document) == ["#two", "two.md", "one.md#one"]
