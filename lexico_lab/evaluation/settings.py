"""What one evaluation is asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.geometry import DTYPES
from lexico_codec.spec import DEFAULT_PAGE_TOKENS, DEFAULT_RECENT_TOKENS, reloadable_tokens
from lexico_proto.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a text is cut, and what of it is stored. Tokens are counted in the model's own tokens."""

    texts: int = 8
    """Texts a file."""
    prefix: int = 768
    """Tokens that are prefilled, stored and reloaded."""
    recent_tokens: int = DEFAULT_RECENT_TOKENS
    """Newest tokens that no reload brings, whatever the codec. In a conversation the model computes
    them; of the prefix they stay exact, and all that no whole page before them holds."""
    continuation: int = 256
    """Tokens that are predicted after the prefix."""
    page_tokens: int = DEFAULT_PAGE_TOKENS
    turns: int = 8
    """Reloads of a growing conversation; 0 leaves them out."""
    turn_tokens: int = 128
    """Tokens a turn adds, over which its predictions are judged."""

    def __post_init__(self) -> None:
        least = (
            ("texts", 1),
            ("recent_tokens", 1),
            ("continuation", 2),
            ("page_tokens", SINK_TOKENS + 1),
            ("turns", 0),
            ("turn_tokens", 2),
        )
        for name, low in least:
            _check_least(name, getattr(self, name), low)
        if self.coded < self.page_tokens:
            raise ConfigurationError(
                f"prefix={self.prefix} without its newest {self.recent_tokens} tokens fills no "
                f"page of {self.page_tokens} tokens"
            )

    @property
    def coded(self) -> int:
        """Tokens of the prefix that are stored: its whole pages before the newest."""
        return max(0, self.prefix - self.recent_tokens) // self.page_tokens * self.page_tokens

    def reloadable(self, prompt: int) -> int:
        """Leading tokens of a prompt of so many to take from its pages."""
        return reloadable_tokens(prompt, self.page_tokens, self.recent_tokens)

    @property
    def window(self) -> int:
        """Tokens that a text has."""
        return self.prefix + max(self.continuation, self.turns * self.turn_tokens)


@dataclass(frozen=True, slots=True)
class EvalSettings(Split):
    """One evaluation."""

    model: str
    """`smollm2`, a folder, or a name on the hub."""
    sources: tuple[Path, ...]
    """Files to cut texts from: UTF-8, or .jsonl with `question` and `answer` a line."""
    out: Path
    """Folder for `report.html` and `report.json`."""
    state: Path
    """Folder of what is done so far, a small JSON file for each text and way to store it."""
    sets: tuple[str, ...] = ()
    """Dictionary sets, files or names of built-in ones; none for the built-in ones that fit."""
    codecs: tuple[str, ...] = ()
    """What to run: a codec, `NAME` or `NAME:{JSON}`, or a preset; none for all that the sets
    serve."""
    pairs: int = 8
    """Facts hidden in a context for retrieval; 0 leaves retrieval out."""
    peers: bool = True
    """Whether the methods of `lexico_lab.published` run too."""
    peer: tuple[str, ...] = ()
    """Parts of names: these of the methods alone run, and in every section, evictions in quality
    against bytes alone; none for the usual ones, in quality against bytes."""
    peer_text: Path | None = None
    """What peers learn from; None for parts of the first source that are not judged."""
    seed: int = 0
    """Of the hidden facts and of the bootstrap."""
    dtype: str = "float16"
    """Element type of the cache that is stored. Fractions are of 16 bits an element always."""

    def __post_init__(self) -> None:
        Split.__post_init__(self)  # super() knows no class whose slots were made later
        for name in ("pairs", "seed"):
            _check_least(name, getattr(self, name), 0)
        if self.pairs == 1 or self.pairs > 12:
            raise ConfigurationError(f"pairs={self.pairs}: 0 for none, or 2..12")
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype={self.dtype}: one of {', '.join(DTYPES)}")
        if not self.sources:
            raise ConfigurationError("text: at least one file")
        if self.peer and not self.peers:
            raise ConfigurationError(f"peer={', '.join(self.peer)}: not together with no-peers")
        if "" in self.peer:
            raise ConfigurationError("peer: a name, or a part of one")


def _check_least(name: str, value: int, low: int) -> None:
    """Refuses a number that is too small, or no integer, by the name of its option.

    Raises:
        ConfigurationError: it is no integer, or below `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name.replace('_', '-')}={value!r}: an integer is needed")
    if value < low:
        raise ConfigurationError(f"{name.replace('_', '-')}={value}: at least {low}")


def check_target(out: Path) -> None:
    """Refuses a report folder that could not be written when everything is done.

    Raises:
        ConfigurationError: it is a file, or it or the folder it is to lie in cannot be written.
    """
    place = out if out.exists() else out.absolute().parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigurationError(f"out {out}: cannot be written; give a folder that can")
