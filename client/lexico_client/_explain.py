"""Why a prompt is found, or not: what its pages belong to, and which of them are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from lexico_client._nearest import StoredNamespace
from lexico_client._results import Match
from lexico_codec.identity import Identity
from lexico_proto.errors import LexicoError, Unsupported


class AbsenceCause(StrEnum):
    """Why a page is not there, as far as the service can know."""

    PRESENT = "present"
    """It has come in the meantime."""
    NO_TRACE = "no-trace"
    """Nothing says that it was ever stored."""
    LEFT = "left"
    """It was stored, and expired or was evicted since."""
    FORGOTTEN = "forgotten"
    """It was forgotten, and nothing says that it was stored since."""


@dataclass(frozen=True)
class Absence:
    """Why the first absent page is not there."""

    cause: AbsenceCause
    forgotten_s: float = 0.0
    """When it was forgotten, in seconds since 1970; 0 where the cause is another one."""


_CAUSES: Final = {
    AbsenceCause.PRESENT: "it has come in the meantime: ask again",
    AbsenceCause.NO_TRACE: "nothing says that a node ever stored it under this namespace",
    AbsenceCause.LEFT: "it was stored, and expired or was evicted since",
    AbsenceCause.FORGOTTEN: "it was forgotten at {}, and not stored since as far as is known",
}


@dataclass(frozen=True)
class Explanation:
    """What a service answers to a prompt, and by what it looked for it."""

    identity: Identity
    """What the pages belong to, part by part."""
    match: Match
    """Which full pages of the prompt are stored."""
    prompt_tokens: int
    """Tokens that were asked for."""
    page_inputs: tuple[int, ...]
    """Pages that something else than token ids reached the model in."""
    against: Identity | None = None
    """Another identity that was given to compare with."""
    stored: tuple[StoredNamespace, ...] = ()
    """Namespaces that the tenant has pages of, at most 64: the nearest first, that of the prompt
    before all if it is among them."""
    namespaces: int | None = None
    """How many there are, with those that are not listed; None where the service did not say."""
    absence: Absence | None = None
    """Why the first absent page is not there; None where none is, or the service did not say."""
    plain_tokens: int | None = None
    """Leading tokens that are stored for the same tokens without inputs; None where the prompt has
    none, or all of it is stored."""
    untold: LexicoError | None = None
    """Why the service did not say all of what it was asked beyond which pages are stored;
    `Unsupported` where it is of an earlier release."""

    @property
    def namespace(self) -> bytes:
        """Parent of the first page's key, 32 bytes."""
        return self.identity.namespace

    @property
    def first_absent(self) -> int | None:
        """The first page that is not stored; None where all are."""
        return self.match.pages if self.match.pages < len(self.match.present) else None

    @property
    def unreachable(self) -> tuple[int, ...]:
        """Pages that are stored behind the first absent one: no load can use them."""
        present = enumerate(self.match.present)
        return tuple(page for page, stored in present if stored and page >= self.match.pages)

    @property
    def differs(self) -> tuple[str, ...]:
        """Parts in which the other identity differs."""
        return () if self.against is None else self.identity.difference(self.against)

    @property
    def nearest(self) -> StoredNamespace | None:
        """The stored namespace that differs in fewest parts, the newest of several."""
        return self.stored[0] if self.stored else None

    @property
    def holders(self) -> tuple[StoredNamespace, ...]:
        """Other namespaces that have more of the prompt's tokens, the nearest first."""
        return tuple(
            each
            for each in self.stored
            if each.differences and (each.tokens or 0) > self.match.tokens
        )

    def text(self) -> str:
        """All of it in lines for people."""
        parts = (self._identity_lines(), self._page_lines(), self._stored_lines())
        return "\n\n".join("\n".join(lines) for lines in parts)

    def _identity_lines(self) -> Iterator[str]:
        yield _line("namespace", self.namespace.hex())
        theirs = {p.name: p.says for p in self.against.parts} if self.against else {}
        ours = {part.name: part.says for part in self.identity.parts}
        for name in ours | theirs:
            yield _line(name, ours.get(name, "none"))
            if name in self.differs:
                yield _line("", f"DIFFERS: the other has {theirs.get(name, 'none')}")
        if self.against is not None and not self.differs:
            yield "the other identity is the same"

    def _page_lines(self) -> Iterator[str]:
        pages, size = len(self.match.present), self.identity.page_tokens
        left = self.prompt_tokens - pages * size
        yield _line("prompt", f"{self.prompt_tokens} tokens: {pages} pages, {left} tokens in none")
        if self.page_inputs:
            yield _line("inputs", f"beside token ids, in pages {_ranges(self.page_inputs)}")
        present = enumerate(self.match.present)
        stored = tuple(page for page, there in present if there)
        yield _line("stored", f"pages {_ranges(stored)}" if stored else "no page")
        yield _line("can be loaded", f"{self.match.tokens} tokens")
        absent = self.first_absent
        if absent is not None:
            key = self.match.page_keys[absent].hex()
            tokens = f"tokens {absent * size} to {(absent + 1) * size - 1}"
            yield _line("first absent", f"page {absent}, {tokens}, key {key}")
            yield _line("", self._why_absent())
        if self.unreachable:
            yield _line("out of reach", f"pages {_ranges(self.unreachable)}, stored behind it")

    def _why_absent(self) -> str:
        if self.absence is None:
            return "no node has stored it under this namespace, or it has left the store"
        return _CAUSES[self.absence.cause].format(_time(self.absence.forgotten_s))

    def _stored_lines(self) -> Iterator[str]:
        nearest = self.nearest
        if nearest is not None:
            yield from self._nearest_lines(nearest)
        elif self.untold is None:
            yield _line("nearest", f"none of {self.namespaces} stored namespaces is described")
        for each in self.holders:
            parts = ", ".join(other.part for other in each.differences)
            yield _line("elsewhere", f"{each.tokens} tokens, in a namespace with other {parts}")
        if (self.plain_tokens or 0) > self.match.tokens:
            yield _line("elsewhere", f"{self.plain_tokens} tokens, without inputs beside them")
        if isinstance(self.untold, Unsupported):
            yield _line("not told", "the server is of a release that does not list namespaces")
        elif self.untold is not None:
            yield _line("not told", f"{self.untold.reason}: {self.untold.message}")

    def _nearest_lines(self, nearest: StoredNamespace) -> Iterator[str]:
        count, since = self.namespaces, _time(nearest.stored_s)
        differs = nearest.differences
        if not differs:
            yield _line("nearest", f"this one: pages of it are stored, the newest of {since}")
            return
        parts = "1 part" if len(differs) == 1 else f"{len(differs)} parts"
        yield _line("nearest", f"differs in {parts}; stored {since}; {count} namespaces in all")
        rows = [("part", "here", "there"), *((d.part, d.ours, d.theirs) for d in differs)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield _line("", "  ".join(cells)).rstrip()


def _time(seconds: float) -> str:
    """Seconds since 1970 for people; a server may say anything."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _line(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def _ranges(pages: tuple[int, ...]) -> str:
    """Ascending numbers as runs: `0-3, 7`."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][1] + 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
