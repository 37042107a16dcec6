"""Which tokens a reloaded cache holds, as long as it lives."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from lexico_client.engines.hf._beside_ids import Flag
from lexico_client.engines.hf._marks import read_mark, write_mark
from lexico_proto.errors import InvalidInput

_ATTRIBUTE: Final = "_lexico_tokens"
UNKNOWN: Final = (
    "several sequences, no token ids, padding or a mask with holes, positions or inputs of your "
    "own, other weights or another adapter than it was loaded for, autocast to another dtype"
)
"""What a cache grows by that is not known by token ids."""


class HeldTokens:
    """Token ids of one sequence's cache, from position 0.

    What the cache grows by is noted forward pass by forward pass, without waiting for a device.
    """

    def __init__(self, prompt: Tensor, tokens: int, *, told: bool = False) -> None:
        """
        Args:
            prompt: `[n]`, that the cache was loaded for.
            tokens: leading ones that were loaded.
            told: the load was told what the model is given beside token ids.
        """
        self.told = told
        self.prompt: Tensor | None = prompt
        """What the first forward pass must go on with, from where the cache ends; None once it has,
        or once `generate` was seen to have another prompt with the same beginning."""
        self.begun = False
        """Whether a forward pass has been since the load, or since `generate` began."""
        self.used = False
        """Whether a model was given the cache."""
        self.given = 0
        """Tokens of the whole prompt that `generate` was given; 0 where it was given the rest."""
        self.look: Callable[[], object] | None = None
        """Says whether the model may be another one, and what it said in `seen` first."""
        self.seen: object = None
        self.intact = tokens
        """Of those that were loaded, how many no crop has taken away: others may stand behind."""
        self._chunks: list[tuple[Tensor, Flag]] = [(prompt[:tokens], True)]
        self._count = tokens
        self._whole = True
        self._use = threading.Lock()
        self._noting = threading.Lock()  # a cache may be offloaded while it grows

    @property
    def whole(self) -> bool:
        """Whether nothing was added that is not known: several sequences, what is no ids, or ids
        with padding or positions of their own. The last shows once ids are asked for: `known`."""
        return self._whole

    def known(self, length: int) -> Tensor:
        """Ids of the first `length` tokens at most, `[n]`, as far as they are known."""
        with self._noting:
            return self._joined()[:length]

    def grow(self, length: int, ids: Tensor | None, plain: Flag = True) -> None:
        """Notes a forward pass.

        Args:
            length: tokens that the cache holds before it: fewer than noted where it was cropped.
            ids: `[rows, n]` that it adds; None where they are not seen.
            plain: whether keys and values come from these ids alone.
        """
        with self._noting:
            self.intact = min(self.intact, length)
            if length < self._count:
                held = self._joined()[:length]
                self._chunks, self._count = [(held, True)], len(held)
            # Rows part ways from here on; and after a gap positions are not known.
            self._whole = self._whole and length == self._count and plain is not False
            if self._whole and ids is not None and ids.shape[0] == 1:
                self._chunks.append((ids.detach()[0], plain))
                self._count += ids.shape[1]
            else:
                self._whole = False

    def _joined(self) -> Tensor:
        kept = list(itertools.takewhile(lambda chunk: bool(chunk[1]), self._chunks))
        self._whole = self._whole and len(kept) == len(self._chunks)
        joined = torch.cat([ids.to("cpu", torch.int64) for ids, _ in kept])
        self._chunks, self._count = [(joined, True)], len(joined)
        return joined

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a `generate` runs on the cache.

        Raises:
            InvalidInput: another one does.
        """
        if not self._use.acquire(blocking=False):
            raise InvalidInput(
                "another generate is at work on this cache: give each one **hit.inputs, which is a "
                "cache of its own every time"
            )
        try:
            yield
        finally:
            self._use.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldTokens:
        made = type(self).__new__(type(self))
        with self._noting:
            vars(made).update(vars(self) | {"_chunks": list(self._chunks)})
        made._use, made._noting = threading.Lock(), threading.Lock()
        return made


def note_tokens(cache: Any, held: HeldTokens) -> None:
    """Writes on a cache which tokens it holds. Its deep copies have notes of their own."""
    write_mark(cache, _ATTRIBUTE, held)


def tokens_of(cache: Any) -> HeldTokens | None:
    """What was written on it."""
    held = read_mark(cache, _ATTRIBUTE)
    return held if isinstance(held, HeldTokens) else None


def check_offloaded(cache: Any, ids: list[int]) -> None:
    """Raises where a cache is known to hold other tokens than it is offloaded with.

    Raises:
        InvalidInput: naming the first position that differs, or from which on it cannot be known.
    """
    held = tokens_of(cache)
    if held is None:
        return
    known = held.known(int(cache.get_seq_length()))
    count = min(len(ids), len(known))
    if not held.whole and count < min(len(ids), int(cache.get_seq_length())):
        raise InvalidInput(
            f"which tokens this cache has grown by from position {count} on is not known "
            f"({UNKNOWN}): offload the first ones alone, or prefill the others; a Session shares "
            "padded prompts"
        )
    differs = (known[:count] != torch.tensor(ids[:count], dtype=torch.int64)).nonzero()
    if len(differs):
        raise InvalidInput(
            f"the cache was loaded for, or has grown by, other tokens than input_ids from position "
            f"{int(differs[0])} on: offload it with the ids of its own sequence"
        )
