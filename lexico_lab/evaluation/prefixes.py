"""Texts to judge, and what a node that never compressed makes of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from lexico_lab.caches import cache_of, forward, states_of
from lexico_lab.evaluation.settings import EvalSettings, Split
from lexico_proto.errors import ConfigurationError, InvalidInput

_CHARACTERS: Final = 64  # a token, at most, of what is read of a file
_WARM_UP_TOKENS: Final = 32


@dataclass(frozen=True)
class Source:
    """A file, and the texts that were cut from it."""

    name: str
    texts: tuple[tuple[int, ...], ...]
    """Token ids of each text, evenly spread over the file, none shared."""
    spare: tuple[tuple[int, ...], ...]
    """Texts between them that are not judged."""

    @property
    def digest(self) -> str:
        """BLAKE2b-256 of the texts' token ids, as hex."""
        digest = hashlib.blake2b(digest_size=32)
        for text in self.texts:
            digest.update(np.asarray([len(text), *text], dtype="<u4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ExactText:
    """One text as a node without compression sees it."""

    ids: tuple[int, ...]
    """Prefix and continuation."""
    states: Tensor
    """`[layers, 2, kv_heads, prefix, head_dim]` of the model's dtype: the prefix's cache."""
    predictions: Tensor
    """`[continuation, vocabulary]` log-probabilities after each token of the continuation."""

    @property
    def following(self) -> tuple[int, ...]:
        """Tokens of the continuation."""
        return self.ids[self.states.shape[3] :]


def read_sources(settings: EvalSettings, tokenizer: Any) -> list[Source]:
    """Texts of every file.

    Raises:
        ConfigurationError: a file that cannot be read, or a .jsonl that is not one of questions.
        InvalidInput: a file that is too short.
    """
    paths = settings.sources
    short = [path.name for path in paths]
    names = [
        path.name if short.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
        for path in paths
    ]
    if len({*names}) < len(names):
        raise ConfigurationError("text: a file is given twice")
    return [
        cut(name, read_text(path), tokenizer, settings)
        for name, path in zip(names, paths, strict=True)
    ]


def read_text(path: Path, questions: int | None = None) -> str:
    """A file's text; of a .jsonl the questions and answers under one another.

    Args:
        path: the file.
        questions: of a .jsonl the most; None for all.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return text
        given = [line for line in text.splitlines() if line.strip()][:questions]
        lines = [json.loads(line) for line in given]
        return "\n\n".join(f"{line['question']}\n{line['answer']}" for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"text {path}: cannot read ({why})") from error


def cut(name: str, text: str, tokenizer: Any, settings: Split, *, whole: bool = False) -> Source:
    """Windows of a text, evenly spread.

    A tokenizer that begins every text with a token (BOS) has it at the start of every window.

    Args:
        name: of the text.
        text: what is cut.
        tokenizer: of the model.
        settings: how many windows, and of how many tokens.
        whole: spread them over all of the text. Of a very long one the first part is plenty
            elsewhere, and tokenizers take their time.

    Raises:
        InvalidInput: the text is too short.
    """
    lead = _lead(tokenizer)
    window = settings.window - len(lead)
    plenty = None if whole else _CHARACTERS * (settings.texts + 16) * window
    ids = tokenize(tokenizer, text[:plenty])
    if len(ids) < settings.page_tokens:
        raise InvalidInput(
            f"text {name}: {len(ids)} tokens are less than a page of {settings.page_tokens}"
        )
    if len(ids) < settings.texts * window:
        raise InvalidInput(
            f"text {name}: {len(ids)} tokens are too few for {settings.texts} texts of {window}; "
            "ask for fewer or shorter ones (--texts, --prefix, --turns)"
        )
    step = (len(ids) - window) // max(1, settings.texts - 1)
    starts = [i * step for i in range(settings.texts)]
    texts = tuple((*lead, *ids[start : start + window]) for start in starts)
    prefix, spare = settings.prefix - len(lead), []
    ends = [*starts[1:], len(ids)]
    for start, end in zip(starts, ends, strict=True):
        for at in range(start + window, end - prefix + 1, prefix):
            spare.append((*lead, *ids[at : at + prefix]))
    return Source(name, texts, tuple(spare))


def training_texts(
    name: str, text: str, tokenizer: Any, tokens: int, most: int
) -> tuple[tuple[int, ...], ...]:
    """The first texts of a file, one after another.

    Args:
        name: of the file.
        text: what it holds.
        tokenizer: as for `cut`.
        tokens: of each text.
        most: texts.

    Raises:
        InvalidInput: the file does not fill one.
    """
    lead = _lead(tokenizer)
    length = tokens - len(lead)
    ids = tokenize(tokenizer, text[: _CHARACTERS * most * tokens])
    count = min(most, len(ids) // length)
    if not count:
        raise InvalidInput(f"text {name}: {len(ids)} tokens do not fill a text of {tokens}")
    return tuple((*lead, *ids[i * length : (i + 1) * length]) for i in range(count))


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)


def exact_text(model: Any, ids: Sequence[int], settings: Split) -> ExactText:
    """Runs the model over a text."""
    prefix = settings.prefix
    cache = cache_of()
    forward(model, ids[:prefix], cache, 1)
    states = states_of(cache)
    following = ids[prefix : prefix + settings.continuation]
    predictions = forward(model, following, cache, len(following))
    return ExactText(tuple(ids[: prefix + settings.continuation]), states, predictions)


def prefill_seconds(model: Any, ids: Sequence[int]) -> float:
    """How long the model takes to prefill tokens, once it is warm."""
    forward(model, ids[:_WARM_UP_TOKENS], cache_of(), 1)
    started = time.perf_counter()
    forward(model, ids, cache_of(), 1)
    return time.perf_counter() - started


def _lead(tokenizer: Any) -> list[int]:
    """Tokens that the tokenizer puts before every text."""
    plain = tokenize(tokenizer, "a")
    whole: list[int] = list(tokenizer("a", verbose=False)["input_ids"])
    extra = len(whole) - len(plain)
    return whole[:extra] if extra > 0 and whole[extra:] == plain else []
