"""Token ids of a caller's, within the time of the call: there may be a million, of any kind."""

from __future__ import annotations

import asyncio
from array import array
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lexico_client._crew import Crew
from lexico_client._deadline import Budget
from lexico_codec.keys import TokenIds, token_array
from lexico_proto.errors import Busy, Cancelled, DeadlineExpired

AT_ONCE: Final = 65536
"""Items of a list that are converted before others on the loop have their turn: milliseconds."""

LATE: Final = (DeadlineExpired, Busy, Cancelled)
"""How token ids are not had because of the call, and not of what they are."""


async def ids_of(token_ids: TokenIds, crew: Crew, budget: Budget) -> npt.NDArray[np.uint32]:
    """Token ids as `token_array` makes them, or none when the budget ends.

    Numbers in memory are taken on the loop, a long list of them in parts. Any other sequence has
    code of the caller's run, which may block: that is for a worker thread, which is left behind.

    Args:
        token_ids: the sequence. A list may be changed as soon as this has begun.
        crew: has the thread.
        budget: of the call.

    Raises:
        TokenCountMismatch: no flat sequence of token ids.
        DeadlineExpired: they were not had within the budget.
        Busy, Cancelled: there is no thread for it.
        Exception: what a sequence of the caller's raised.
    """
    if isinstance(token_ids, np.ndarray | Tensor | array):
        return token_array(token_ids)
    if type(token_ids) in (list, tuple):
        if len(token_ids) <= AT_ONCE:
            return token_array(token_ids)
        held, made = tuple(token_ids), []
        async with budget.bound():
            for start in range(0, len(held), AT_ONCE):
                made.append(token_array(held[start : start + AT_ONCE]))
                await asyncio.sleep(0)
        return np.concatenate(made)
    async with crew.shift(budget) as shift:
        return await shift.result(shift.start(token_array, token_ids))
