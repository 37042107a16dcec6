"""Prompts for real engines: token ids of a document of ours, cut into pieces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transformers import AutoTokenizer

ROOT: Final = Path(__file__).parents[2]
TOKENS: Final = 600
"""Of a prompt."""
SHARED: Final = 320
"""Tokens, five pages, that branches have in common."""
_PIECES: Final = 8


@dataclass(frozen=True)
class Prompts:
    """Token ids of a document."""

    apart: list[list[int]]
    """Of 600 tokens each, without a common beginning."""
    spare: list[list[int]]
    """Others that no test stores before it needs them."""
    behind: int = 200
    """Tokens of the second prompt that the long one ends with."""

    def branch(self, tokens: int, other: int) -> list[int]:
        """The beginning of the first prompt, and then another text."""
        return self.apart[0][:tokens] + self.spare[other][: TOKENS - tokens]

    @property
    def branches(self) -> list[list[int]]:
        """Four prompts of 400 to 520 tokens with a common beginning."""
        return [self.branch(SHARED, other)[: 400 + 40 * other] for other in range(4)]

    @property
    def long(self) -> list[int]:
        """It begins as the first one."""
        return self.apart[0] + self.apart[1][: self.behind]


@dataclass(frozen=True)
class Plain:
    """The tokens of an engine without us, of prompts of these names."""

    apart: list[list[int]]
    spare: list[list[int]]
    branches: list[list[int]]
    long: list[int]


def prompts_of(model: Path, apart: int, behind: int = 200) -> Prompts:
    """Eight prompts.

    Args:
        model: folder of the model, for its tokens.
        apart: how many are `apart`; the others are spare.
        behind: as `Prompts` has it.
    """
    text = "".join((ROOT / "docs" / name).read_text() for name in ("training.md", "stores.md"))
    ids = AutoTokenizer.from_pretrained(model)(text).input_ids
    cut = [ids[i * TOKENS : (i + 1) * TOKENS] for i in range(_PIECES)]
    assert all(len(each) == TOKENS for each in cut)
    return Prompts(cut[:apart], cut[apart:], behind)
