"""Prompts of a batch that are brought to the same column, each computed alone from where its pages
end."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final

import torch

from lexico_client.engines.hf._batch_memory import BatchMemory
from lexico_client.engines.hf._plain_models import base_model
from lexico_client.engines.hf._prompts import Prompts
from lexico_codec.hf_inputs import cache_inputs

FORWARD_TOKENS: Final = 64
"""What a forward pass of one prompt costs beside its tokens, in tokens of a batch."""


def start_column(ready: Sequence[int], columns: int, most: int | None = None) -> int:
    """The column that the whole batch goes on from with the fewest tokens to compute.

    Prompts that are ready up to a later column compute what lies between again; those that are
    ready up to an earlier one are brought there, each by a forward pass of its own.

    Args:
        ready: columns of each prompt whose keys and values are there, its padding among them.
        columns: of the prompts. The last one is always computed.
        most: a column that it must not be behind.
    """
    last = columns - 1 if most is None else min(most, columns - 1)

    def cost(start: int) -> int:
        behind = sum(start - column + FORWARD_TOKENS for column in ready if column < start)
        return behind + len(ready) * (columns - start)

    return min(sorted({min(column, last) for column in (*ready, last)}), key=cost)


@torch.no_grad()
def catch_up(
    model: Any, memory: BatchMemory, prompts: Prompts, ready: Sequence[int], start: int
) -> int:
    """Computes each prompt from where its pages end up to a column.

    Args:
        model: of the batch.
        memory: that the batch lies in.
        prompts: of the batch.
        ready: as for `start_column`.
        start: the column.

    Returns:
        Tokens that were computed.

    Raises:
        ShapeMismatch: the model made other keys and values than the memory is for.
    """
    base: Any = base_model(model)
    parameters = inspect.signature(type(base).forward).parameters
    few: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    computed = 0
    for row, (column, pad) in enumerate(zip(ready, prompts.pads, strict=True)):
        if column >= start:
            continue
        cache = memory.row(row, pad, column - pad)
        ids = prompts.ids[row : row + 1, column:start].to(base.device)
        model(ids, **cache_inputs(base, cache), use_cache=True, **few)
        memory.keep(cache, row, pad, start - pad)
        computed += start - column
    return computed
