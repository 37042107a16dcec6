"""Token ids and numbers of tokens as callers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lexico_proto.errors import ConfigurationError, ShapeMismatch

DEFAULT_ROOM_TOKENS: Final = 256
"""Tokens behind a prompt that a reloaded cache has memory for."""


def flat_ids(input_ids: Tensor | Sequence[int]) -> list[int]:
    """The ids of one sequence.

    Args:
        input_ids: `[1, tokens]` or `[tokens]`.

    Raises:
        ShapeMismatch: a batch, or no integers.
    """
    if not isinstance(input_ids, Tensor):
        return list(input_ids)
    if input_ids.ndim == 2 and input_ids.shape[0] != 1:
        raise ShapeMismatch(f"a batch of {input_ids.shape[0]} prompts: one at a time")
    if input_ids.ndim not in (1, 2) or input_ids.dtype not in (torch.int64, torch.int32):
        raise ShapeMismatch(
            f"input_ids of shape {tuple(input_ids.shape)} and {input_ids.dtype}: integers "
            "[1, tokens] are needed"
        )
    flat: list[int] = input_ids.reshape(-1).tolist()
    return flat


def checked_count(name: str, count: object, least: int = 0) -> int:
    """A number that someone gave.

    Raises:
        ConfigurationError: no integer, or less than `least`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ConfigurationError(f"{name}={count!r}: an integer of {least} or more is needed")
    return count
