"""The pages of each prompt of a batch, loaded to where the prompt's padding ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from lexico_client._results import Loaded, LoadSeconds
from lexico_client.engines.hf._batch_memory import BatchMemory
from lexico_client.engines.hf._prompts import Prompts
from lexico_client.engines.hf._reports import PromptReport
from lexico_client.engines.hf._shared_cache import HuggingFaceCache
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import DeadlineExpired, LexicoError, Unavailable

_LEAST_SECONDS: Final = 0.001


@dataclass(frozen=True)
class RowLoads:
    """What the loads of a batch brought."""

    memory: BatchMemory
    ready: tuple[int, ...]
    """Columns of each row whose keys and values are there, its padding among them."""
    reports: tuple[PromptReport, ...]


def load_rows(
    shared: HuggingFaceCache,
    base: CacheSpec,
    memory: BatchMemory,
    prompts: Prompts,
    refused: Mapping[int, LexicoError],
    familiar: Callable[[list[int]], int],
    timeout: float,
) -> RowLoads:
    """Loads prompt after prompt. Whatever fails is a miss; a service that does not answer is not
    asked again for the rest of the batch.

    Args:
        shared: of the model.
        base: of the model as it is now, see `HuggingFaceCache._to_load`.
        memory: of the batch.
        prompts: of the batch.
        refused: rows whose pages are not asked for, and why.
        familiar: leading tokens of a prompt that the session knows.
        timeout: seconds for all of them.
    """
    memory.clear(prompts.pads)
    deadline = time.monotonic() + timeout
    reports, ready, unfinished = [], [], False
    silent: LexicoError | None = None
    for row, (ids, pad) in enumerate(zip(prompts.rows, prompts.pads, strict=True)):
        left = deadline - time.monotonic()
        reason = refused.get(row) or silent
        if reason is None and left <= 0:
            reason = DeadlineExpired("the time for this reload went to other prompts of the batch")
        spec, loaded, tokens = base, _missed(reason), 0
        if reason is None:
            try:
                spec = shared._to_load(base, ids, (), left)
                target = memory.target(spec, row, pad)
                left = max(deadline - time.monotonic(), _LEAST_SECONDS)
                loaded, tokens = shared._load(spec, ids, (), target, left)
            except LexicoError as error:
                loaded = _missed(error)
        if not loaded.matched_pages and isinstance(loaded.reason, Unavailable | DeadlineExpired):
            silent = loaded.reason
        unfinished = unfinished or loaded.unfinished is not None
        ready.append(pad + tokens)
        reports.append(
            PromptReport(
                tokens=len(ids),
                reloaded_tokens=tokens,
                pages=spec.pages_of(tokens),
                matched_pages=loaded.matched_pages,
                reason=loaded.reason,
                familiar_tokens=familiar(ids),
            )
        )
    if unfinished:
        memory = memory.moved(ready)
    return RowLoads(memory, tuple(ready), tuple(reports))


def _missed(reason: LexicoError | None) -> Loaded:
    return Loaded(0, 0, 0, reason, 0, LoadSeconds())
