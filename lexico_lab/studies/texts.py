"""The texts that studies run on, and how they are split."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lexico_lab.evaluation.prefixes import cut, read_text
from lexico_lab.evaluation.settings import Split
from lexico_proto.errors import InvalidInput

DATA: Final = Path(os.environ.get("LEXICO_DATA", "../shared/data"))
"""Folder with `wikitext2/` and `gsm8k/`."""
SPLIT: Final = Split(recent_tokens=32, page_tokens=184, turns=0)
"""Of comparisons: of 768 tokens all but the newest 32 are stored, in four pages; 256 follow."""

_GSM8K_QUESTIONS: Final = 2500


def windows(tokenizer: Any, path: Path, count: int) -> list[tuple[int, ...]]:
    """Windows of prefix and continuation, evenly spread over a text.

    Raises:
        SystemExit: the text is not there, or too short.
    """
    return windows_of(tokenizer, _read(path), path.name, count)


def windows_of(tokenizer: Any, text: str, name: str, count: int) -> list[tuple[int, ...]]:
    """As `windows`, of a text at hand."""
    try:
        return list(cut(name, text, tokenizer, replace(SPLIT, texts=count), whole=True).texts)
    except InvalidInput as error:
        raise SystemExit(error.message) from error


def text_of(data: Path, name: str) -> str:
    """The text of a set: WikiText-2's test, or the first questions and answers of GSM8K.

    Raises:
        SystemExit: the text is not there.
    """
    if name != "gsm8k":
        return _read(data / name / "test.raw.txt")
    return _read(data / name / "train.jsonl", _GSM8K_QUESTIONS)


def _read(path: Path, questions: int | None = None) -> str:
    if not path.is_file():
        raise SystemExit(f"skipped: {path} is absent; give --data, a folder with wikitext2/")
    return read_text(path, questions)
