"""Why a prompt is found, or not: what its pages belong to, and which of them are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lexico_client._results import Match
from lexico_codec.identity import Identity


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

    def text(self) -> str:
        """All of it in lines for people."""
        return "\n".join([*self._identity_lines(), "", *self._page_lines()])

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
            yield _line("", "no node has stored it under this namespace, or it has left the store")
        if self.unreachable:
            yield _line("out of reach", f"pages {_ranges(self.unreachable)}, stored behind it")


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
