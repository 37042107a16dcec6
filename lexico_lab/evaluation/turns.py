"""A conversation that grows over reloads: what errors become when each turn builds on the last.

Turn i reloads the pages stored so far but for the newest tokens, prefills what they lack, predicts
the next piece of text, and stores the new pages. Those already stored are not coded again, but new
ones were computed on top of coded ones. The reference never compressed; `once` reloads pages that
were coded from its cache, at the same turns, so what `kl` has over `kl_once` is what piled up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from lexico_lab.caches import (
    cache_of,
    divergence,
    forward,
    negative_log_likelihood,
    states_of,
)
from lexico_lab.evaluation.settings import Split
from lexico_lab.evaluation.shelf import OpenShelf, Shelf

if TYPE_CHECKING:
    from transformers import DynamicCache


class Turn(TypedDict):
    """One reload. Nats, mean over the turn's tokens."""

    turn: int
    reloaded: int
    """Tokens."""
    pages: int
    """Pages newly stored."""
    stored: int
    """Tokens of all pages of the conversation, when the turn has ended."""
    bytes: int
    """That these take."""
    kl: float
    kl_once: float
    nll: float
    nll_exact: float


@dataclass(frozen=True, eq=False)
class ExactTurns:
    """The conversation of a node that never compressed."""

    ids: tuple[int, ...]
    states: Tensor
    """At the end; those at the end of a turn are its leading tokens."""
    predictions: tuple[Tensor, ...]
    """`[turn tokens, vocabulary]` a turn: of its tokens, the first by what was before."""


def exact_turns(model: Any, ids: Sequence[int], settings: Split) -> ExactTurns:
    """Runs the conversation without compression."""
    used = tuple(ids[: settings.prefix + settings.turns * settings.turn_tokens])
    cache = cache_of()
    first, predictions = forward(model, used[: settings.prefix], cache, 1), []
    for turn in range(settings.turns):
        piece = used[_end(settings, turn) : _end(settings, turn + 1)]
        made = torch.cat([first, forward(model, piece, cache, len(piece))])
        predictions.append(made[:-1])
        first = made[-1:]
    return ExactTurns(used, states_of(cache), tuple(predictions))


def resume(
    model: Any, shelf: Shelf, ids: Sequence[int], settings: Split
) -> tuple[DynamicCache, Tensor, int]:
    """What a node does with a prompt: reloads its stored pages and prefills the rest.

    Returns:
        The cache of all of `ids`, `[1, vocabulary]` log-probabilities of the next token, and how
        many tokens were reloaded.
    """
    tokens = settings.reloadable(len(ids))
    pages = -(-tokens // settings.page_tokens)
    whole = shelf.reload(ids[: pages * settings.page_tokens], model.dtype, model.device)
    states = whole[:, :, :, :tokens]
    reloaded = states.shape[3]
    cache = cache_of(states)
    return cache, forward(model, ids[reloaded:], cache, 1), reloaded


@torch.inference_mode()
def converse(model: Any, exact: ExactTurns, open_shelf: OpenShelf, settings: Split) -> list[Turn]:
    """Every turn of a conversation that is stored one way."""
    ids, shelf, once = exact.ids, open_shelf(), open_shelf()

    def predicted(cache: DynamicCache, first: Tensor, piece: Sequence[int]) -> Tensor:
        return torch.cat([first, forward(model, piece, cache, len(piece))])[:-1]

    shelf.store(ids[: settings.prefix], exact.states)
    once.store(ids[: settings.prefix], exact.states)
    found: list[Turn] = []
    for turn, reference in enumerate(exact.predictions, start=1):
        start, end = _end(settings, turn - 1), _end(settings, turn)
        piece = ids[start:end]
        cache, first, reloaded = resume(model, shelf, ids[:start], settings)
        made = predicted(cache, first, piece)
        other, first, _ = resume(model, once, ids[:start], settings)
        single = predicted(other, first, piece)
        pages = shelf.store(ids[:end], states_of(cache))
        once.store(ids[:end], exact.states)  # as above: methods code new pages together
        found.append(
            {
                "turn": turn,
                "reloaded": reloaded,
                "pages": pages,
                "stored": end // settings.page_tokens * settings.page_tokens,
                "bytes": shelf.size,
                "kl": divergence(reference, made),
                "kl_once": divergence(reference, single),
                "nll": negative_log_likelihood(made, piece),
                "nll_exact": negative_log_likelihood(reference, piece),
            }
        )
    return found


def _end(settings: Split, turn: int) -> int:
    """Tokens at the end of a turn; turn 0 is the prefix."""
    return settings.prefix + turn * settings.turn_tokens
