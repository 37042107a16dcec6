"""What a published method would hold of a conversation.

Methods code a range of tokens at once, with scales, tables and lengths that all of it shares, so
that the pages that are new make one range. It comes back by pages, and is never coded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.geometry import Rope
from lexico_lab.evaluation.peers import prefix_of
from lexico_lab.evaluation.shelf import Shelf
from lexico_lab.published.coder import Coder

Weigh = Callable[[Sequence[int], Tensor], Tensor]
"""From tokens and the states of the leading ones to the importance of the others, as
`peers.importance_of` finds it."""


class PeerShelf(Shelf):
    """Pages of one method at one setting. The first tokens of a text are exact, 16 bits a value."""

    def __init__(self, coder: Coder, rope: Rope, page_tokens: int, weigh: Weigh) -> None:
        """
        Args:
            coder: the method, calibrated.
            rope: of the model.
            page_tokens: tokens a page.
            weigh: is asked for methods alone that weigh tokens.
        """
        self._coder, self._rope, self._page_tokens, self._weigh = coder, rope, page_tokens, weigh
        self._pages: dict[tuple[int, ...], Tensor] = {}
        """By all tokens of the text up to the page's end, as keys of pages of ours are."""
        self._size = 0

    @property
    def size(self) -> int:
        return self._size

    def store(self, ids: Sequence[int], states: Tensor) -> int:
        missing = [page for page in self._named(ids) if page not in self._pages]
        if not missing:
            return 0
        start, end = len(missing[0]) - self._page_tokens, len(missing[-1])
        exact = max(0, SINK_TOKENS - start)
        made = states[:, :, :, start:end].clone()
        importance = torch.zeros(len(states), len(ids))
        if self._coder.weighs:
            importance = self._weigh(ids, states[:, :, :, :start])
        source = prefix_of(states, importance, slice(start + exact, end), self._rope)
        stored = self._coder.code(source)
        for part, tensor in enumerate((stored.keys, stored.values)):
            made[:, part, :, exact:] = tensor.transpose(1, 2).to(made)
        self._size += int(stored.size) + 2 * made[:, :, :, :exact].numel()
        pages = made.chunk(len(missing), dim=3)
        self._pages |= zip(missing, pages, strict=True)
        return len(missing)

    def reload(self, ids: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        found = [self._pages[p] for p in takewhile(self._pages.__contains__, self._named(ids))]
        states = torch.cat(found, dim=3) if found else torch.empty(0, 0, 0, 0, 0)
        return states.to(device, dtype)

    def _named(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """The full pages of a text."""
        ends = range(self._page_tokens, len(ids) + 1, self._page_tokens)
        return [tuple(ids[:end]) for end in ends]
