"""Which chunks are stored, for a scheduler that asks for one at a time and never waits.

The scheduler asks for all chunks of a request in a step, and in the next again for those without an
answer. What is new in one step is one question to the service. Everything here is called by the
scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lexico_client._loop_thread import Call
from lexico_client.engines._counts import Counts
from lexico_proto.errors import LexicoError

Ask = Callable[[Sequence[bytes]], Call[list[bool]]]
"""Begins to ask for chunks by their keys, and returns at once."""


@dataclass
class _Entry:
    """What is known of a chunk, for as long as a request that asked for it lives."""

    requests: set[str] = field(default_factory=set)
    found: bool | None = None
    failed: bool = False
    """Whether the service did not say."""


class Lookups:
    """Answers of the service, kept for the requests that asked."""

    def __init__(self, ask: Ask, counts: Counts, chunk_tokens: int) -> None:
        """
        Args:
            ask: see the type; it may raise LexicoError.
            counts: of the tier.
            chunk_tokens: tokens a chunk.
        """
        self._ask = ask
        self._counts = counts
        self._tokens = chunk_tokens
        self._entries: dict[bytes, _Entry] = {}
        self._of_request: dict[str, set[bytes]] = {}
        self._outcomes: dict[str, str] = {}
        self._new: dict[bytes, None] = {}
        self._asked: list[tuple[list[bytes], Call[list[bool]]]] = []

    def lookup(self, key: bytes, request: str) -> bool | None:
        """Whether a chunk is stored; None while the answer is under way.

        Args:
            key: of the chunk.
            request: name of the one that asks; the answer is kept until it has `finished`.
        """
        self._take_answers()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            self._new[key] = None
        if request not in entry.requests:
            entry.requests.add(request)
            self._of_request.setdefault(request, set()).add(key)
        if entry.found:
            self._outcomes[request] = "hit"
        elif entry.found is not None:
            self._outcomes.setdefault(request, "failed" if entry.failed else "miss")
        return entry.found

    def ask(self) -> None:
        """Asks for what is new, at the end of a step."""
        self._take_answers()
        keys = [key for key in self._new if key in self._entries]
        self._new = {}
        if not keys:
            return
        self._counts.tokens("asked", len(keys) * self._tokens)
        try:
            self._asked.append((keys, self._ask(keys)))
        except LexicoError as error:
            self._not_found(keys, error)

    def lost(self, keys: Collection[bytes]) -> None:
        """Of chunks that were found and did not come: they are not promised again to the requests
        that live."""
        for key in keys:
            if (entry := self._entries.get(key)) is not None:
                entry.found = False

    def finished(self, request: str) -> None:
        """Gives up what is kept for a request alone."""
        for key in self._of_request.pop(request, ()):
            entry = self._entries[key]
            entry.requests.discard(request)
            if not entry.requests:
                del self._entries[key]
        if (outcome := self._outcomes.pop(request, None)) is not None:
            self._counts.request(outcome)

    def _take_answers(self) -> None:
        """Takes what has come; an answer of a chunk that nobody waits for is dropped."""
        if not any(call.ended.is_set() for _, call in self._asked):
            return
        asked, self._asked = self._asked, []
        for keys, call in asked:
            if not call.ended.is_set():
                self._asked.append((keys, call))
                continue
            try:
                answer = call.result()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a miss
                self._not_found(keys, error)
                continue
            for key, there in zip(keys, answer, strict=True):
                if (entry := self._entries.get(key)) is not None and entry.found is None:
                    entry.found = there
            self._counts.tokens("promised", sum(answer) * self._tokens)

    def _not_found(self, keys: Sequence[bytes], error: BaseException) -> None:
        self._counts.warn("match", error)
        for key in keys:
            if (entry := self._entries.get(key)) is not None and entry.found is None:
                entry.found, entry.failed = False, True
