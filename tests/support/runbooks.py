"""Commands in docs/runbooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGES: Final = Path(__file__).parents[2] / "docs" / "runbooks"
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of commands."""

    page: str
    kind: str
    """bash: needs no cluster. console: needs one, or files of the reader's."""
    text: str


def blocks() -> Iterator[Block]:
    """Of all pages."""
    for page in sorted(PAGES.glob("*.md")):
        for kind, text in _BLOCK.findall(page.read_text()):
            yield Block(page.stem, kind, text)
