"""What tests of whole evaluations share: a tokenizer, a text, settings, what a page says."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lexico_lab.evaluation.settings import EvalSettings


def _letters(text: str, **_: Any) -> dict[str, list[int]]:
    return {"input_ids": [ord(c) % 64 for c in text]}


letters: Any = _letters
"""A tokenizer of single characters, as far as they are asked."""


def tiny_settings(folder: Path, **changes: Any) -> EvalSettings:
    """One short text, coded with raw, in pages of 16 tokens; two turns, two facts."""
    text = folder / "foxes.txt"
    text.write_text("".join(f"The fox saw {i} hounds and the hounds saw it. " for i in range(80)))
    given: dict[str, Any] = {
        "model": "tiny",
        "sources": (text,),
        "out": folder / "report",
        "state": folder / "state",
        "codecs": ("raw",),
        "texts": 1,
        "prefix": 208,
        "recent_tokens": 8,
        "continuation": 24,
        "page_tokens": 16,
        "turns": 2,
        "turn_tokens": 32,
        "pairs": 2,
        "dtype": "float32",
    }
    return EvalSettings(**given | changes)


class PageText(HTMLParser):
    """What a page says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.said.append(data)
