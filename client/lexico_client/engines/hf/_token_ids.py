"""Token ids and numbers of tokens as callers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lexico_codec.keys import token_array
from lexico_proto.errors import ConfigurationError, ShapeMismatch

DEFAULT_ROOM_TOKENS: Final = 256
"""Tokens behind a prompt that a reloaded cache has memory for."""


TokenIds: TypeAlias = Tensor | Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer]
"""Ids of one sequence as tokenizers give them, `[tokens]` or `[1, tokens]`."""
_WANTED: Final = "integers, [1, tokens] or [tokens], are needed"
_WAY: Final = "give one at a time, or the batch to a Session of lexico_client.hf"


def flat_ids(input_ids: TokenIds) -> list[int]:
    """The ids of one sequence.

    Raises:
        ShapeMismatch: a batch, or no integers.
        TokenCountMismatch: integers that are no token ids.
    """
    if isinstance(input_ids, Tensor):
        if input_ids.is_floating_point() or input_ids.is_complex():
            raise ShapeMismatch(f"input_ids of {input_ids.dtype}: {_WANTED}")
        ids: npt.NDArray[Any] = input_ids.detach().cpu().numpy()
    else:
        try:
            ids = np.asarray(input_ids)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ShapeMismatch(
                f"input_ids: {_WANTED}; rows of other lengths are a batch: {_WAY}"
            ) from error
    if ids.ndim == 2 and len(ids) != 1:
        raise ShapeMismatch(f"a batch of {len(ids)} prompts: {_WAY}")
    if ids.ndim not in (1, 2) or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ShapeMismatch(f"input_ids of shape {ids.shape} and {ids.dtype}: {_WANTED}")
    flat: list[int] = token_array(ids.reshape(-1)).tolist()
    return flat


def checked_count(name: str, count: object, least: int = 0) -> int:
    """A number that someone gave.

    Raises:
        ConfigurationError: no integer, or less than `least`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ConfigurationError(f"{name}={count!r}: an integer of {least} or more is needed")
    return count
