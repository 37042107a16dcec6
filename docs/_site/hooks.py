"""What MkDocs needs beside its own: the documents that lie outside of docs/, and links to files.

Documents link each other by their place in the tree, so that they can be read there. On the site
the README is the first page, and a link to a file that is no page leads to the sources, or is text
where `SOURCES` does not name any.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
SOURCES: Final = os.environ.get("LEXICO_DOCS_SOURCES", "")
"""Address of the tree that links to sources begin with, such as https://HOST/NAME/blob/main."""

OUTSIDE: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "k8s/README.md": "kubernetes.md",
    "bench/README.md": "benchmarks.md",
}
"""Pages of the site by their place in the tree."""

_CODE_OR_LINK: Final = re.compile(
    r"^(?P<indent> *)```.*?^(?P=indent)```"
    r"|(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)"
    r"|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)
# A line that begins with a comment would end a list or a paragraph.
_FIGURE_MARK: Final = re.compile(r"<!-- /?figure\b[^\n]*?-->")
_FOREIGN: Final = re.compile(r"[a-z]+:")


def on_config(config: Any) -> Any:
    """Puts the documents of a folder where the navigation names the folder."""
    for section in config.nav:
        for pages in section.values() if isinstance(section, dict) else ():
            for entry in pages if isinstance(pages, list) else ():
                if isinstance(entry, dict):
                    entry.update({title: _pages_in(folder) for title, folder in entry.items()})
    return config


def _pages_in(folder: Any) -> Any:
    if not isinstance(folder, str) or not folder.endswith("/"):
        return folder
    return sorted(str(path.relative_to(DOCS)) for path in (DOCS / folder).glob("*.md"))


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside of docs/."""
    for place, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / place).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links as the site has them, and without the marks around figures."""
    place = _place_of(page.file.src_uri)
    markdown = _FIGURE_MARK.sub("", markdown)
    return _CODE_OR_LINK.sub(lambda found: _on_the_site(found, place), markdown)


def _on_the_site(found: re.Match[str], place: str) -> str:
    picture, words, target = found["picture"], found["words"], found["target"]
    if target is None:
        return found[0]
    path, hash_sign, anchor = target.partition("#")
    if not path or _FOREIGN.match(target):
        return found[0]
    there = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
    page = _page_of(there)
    if page is not None:
        here = posixpath.dirname(_page_of(place) or "")
        return f"{picture}[{words}]({posixpath.relpath(page, here or '.')}{hash_sign}{anchor})"
    return f"[{words}]({SOURCES}/{there})" if SOURCES else words


def _place_of(page: str) -> str:
    """Where a page of the site lies in the tree."""
    return next((place for place, known in OUTSIDE.items() if known == page), f"docs/{page}")


def _page_of(place: str) -> str | None:
    """The page or picture of the site that a file of the tree is, or None."""
    if place in OUTSIDE:
        return OUTSIDE[place]
    if place.startswith("docs/") and (ROOT / place).is_file():
        return place.removeprefix("docs/")
    return None
